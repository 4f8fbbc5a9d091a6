"""The figures of a grid, drawn from its data frames. The functions can be called from a notebook, too:

    run = implicit_slate.load_run("runs/demo")
    curve_figure(run, "jacobian/spectral_norm")

Every setting has a panel, with each method in its own colour. If there are more methods than colours, every method has
its own panel instead, drawn in front of all others.
"""

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from implicit_slate.files import write_atomically
from implicit_slate.measures import LOGGED, LOSSES, column_name
from implicit_slate.report.numbers import capitalised, ratio
from implicit_slate.report.run import AXIS_WORDS, IMPLICIT, UNROLLED, Run

COLORS = {"implicit": "#0072B2", "unrolled": "#D55E00"}
OTHER_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; blue and red-orange as in the paper."""

DASHES = {"picard": "-", "broyden": (0, (4, 1.5)), "anderson": (0, (1.2, 1.2))}
"""Line styles of the forward solvers, so that methods differ not only in colour."""

styled = matplotlib.rc_context(fname=Path(__file__).with_name("figures.mplstyle"))
"""Decorator of functions that draw: they use the report's style, whatever the notebook's settings."""

MAX_METHODS = len(OTHER_COLORS)
"""The largest number of methods in a panel, so that each has its own colour, whichever methods they are."""

SPREAD = 5
"""If the ratio of the largest to the smallest value is above this, the measure gets a logarithmic axis."""

DIVERGED = {"ls": "", "marker": "X", "ms": 8, "mec": "black", "mew": 0.8, "zorder": 4, "clip_on": False}


def overview_tags(run: Run) -> list[str]:
    """The logged measures of the overview; none if there are more methods than colours."""
    tags = ("jacobian/spectral_norm", "grad_norm", run.loss)
    return [tag for tag in tags if tag in run.logged and len(run.methods) <= MAX_METHODS]


def curve_tags(run: Run) -> list[str]:
    """The logged measures that are drawn over training; of the losses only `run.loss`."""
    drawn = [tag for tag, measure in LOGGED.items() if measure.figure and (tag == run.loss or tag not in LOSSES)]
    return [tag for tag in drawn if tag in run.logged]


def result_columns(run: Run) -> list[str]:
    """The main results that were measured."""
    columns = [run.loss, "jacobian/spectral_norm_max", "grad_norm_max", "gradient/cosine"]
    return [column for column in columns if run.finished[column].notna().any()]


def completed(run: Run) -> pd.DataFrame:
    """The complete cells, whose results the figures of results show: the largest norms of a diverged cell are those up
    to where it ended, so it has only a mark."""
    return run.cells[run.cells["status"] == "complete"]


def numeric_axes(run: Run) -> list[str]:
    """The axes that take at least three values, all numeric."""
    numeric = [axis for axis in run.setting_axes if pd.api.types.is_numeric_dtype(run.cells[axis])]
    return [axis for axis in numeric if run.cells[axis].nunique() >= 3]


@styled
def overview_figure(run: Run) -> Figure:
    """The main measures over training, side by side, with all settings in the same panels."""
    tags = overview_tags(run)
    figure = Figure(figsize=(3.7 * max(len(tags), 1), 3.4), layout="constrained")
    for ax, tag in zip(figure.subplots(1, max(len(tags), 1), squeeze=False).flat, tags):
        _draw(ax, run, run.cells, tag, median=True)
        log = wants_log(run, tag)
        if log:
            make_log(ax)
        ax.set_title(capitalised(LOGGED[tag].name) + (" (log)" if log else ""))
        ax.set_xlabel("training step")
    _legend(figure, run, list(run.methods))
    return figure


@styled
def curve_figure(run: Run, tag: str) -> Figure:
    """One measure over training: one panel per setting, one colour per method, one line per seed, a band over seeds."""
    alone = len(run.methods) > MAX_METHODS  # one panel per method, with all others in grey behind it
    by = "method" if alone else "setting"
    panels = {name: run.cells[run.cells[by] == name] for name in (run.methods if alone else run.settings)}
    crowded, count = len(run.methods) > 2, len(panels)
    columns = {1: 1, 2: 2, 3: 2, 4: 2}.get(count, 3 if count <= 9 else 4)
    rows = -(-count // columns)
    width, height = (6.5, 3.75) if crowded and count == 1 else (5.5 if columns == 1 else 3.6 * columns, 2.5)
    figure = Figure(figsize=(width, height * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    log = wants_log(run, tag)
    for ax, (title, cells) in zip(axes, panels.items()):
        for cell in run.cells.index.difference(cells.index) if alone else ():
            ax.plot(_drawn(run, cell, tag, log), color="#bbbbbb", lw=0.6, alpha=0.7, zorder=1)
        _draw(ax, run, cells, tag, median=crowded)
        ax.set_title(title if count > 1 else None)
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[max(count - columns, 0) : count]:
        ax.tick_params(labelbottom=True)  # there may be no panel below it
    if log:
        make_log(axes[0])  # the other panels share its scale and ticks
    figure.supxlabel("training step", fontsize=10)
    figure.supylabel(LOGGED[tag].name + (" (log)" if log else ""), fontsize=10)
    _legend(figure, run, [] if alone else list(run.methods))
    return figure


@styled
def methods_figure(run: Run) -> Figure:
    """The main results by method, with the lowest median loss first."""
    losses = run.finished.groupby("method", observed=False)[run.loss].median()
    methods = list(losses.sort_values(na_position="last", kind="stable").index)
    keys, styles, complete = result_columns(run), method_styles(run), completed(run)
    figure = Figure(figsize=(3.6 * len(keys) + 0.8, 0.33 * len(methods) + 1.2), layout="constrained")
    for ax, key in zip(figure.subplots(1, len(keys), sharey=True, squeeze=False).flat, keys):
        for row, method in enumerate(methods):
            values, color = complete.loc[complete["method"] == method, key].dropna(), styles[method]["color"]
            ax.plot(values, [row] * len(values), "o", ms=5, color=color, alpha=0.75, zorder=3)
            ax.plot(values.median(), row, "|", ms=15, mew=2.2, color=color, zorder=3)
            if (run.cells.loc[run.cells["method"] == method, "status"] == "diverged").any():
                ax.plot(1.0, row, **DIVERGED, color=color, transform=ax.get_yaxis_transform())  # at the right edge
        log = spreads_widely(run, key)
        if log:
            make_log(ax, "x")
        ax.set_title(capitalised(column_name(key)) + (" (log)" if log else ""))
    figure.axes[0].set_yticks(range(len(methods)), methods)
    figure.axes[0].set_ylim(len(methods) - 0.5, -0.5)
    _legend(figure, run, [])
    return figure


@styled
def sweep_figure(run: Run, axis: str) -> Figure:
    """The main results over a numeric axis, such as the number of iterations."""
    keys, styles = result_columns(run), method_styles(run)
    figure = Figure(figsize=(3.7 * len(keys), 3.4), layout="constrained")
    for ax, key in zip(figure.subplots(1, len(keys), squeeze=False).flat, keys):
        found = completed(run).dropna(subset=key)
        for method in reversed(run.methods):
            values = found[found["method"] == method].groupby(axis)[key]
            least, median, largest = values.min(), values.median(), values.max()
            color = styles[method]["color"]
            ax.fill_between(least.index, least, largest, color=color, alpha=0.15, lw=0)
            ax.plot(median, **styles[method], lw=1.8)
            dots = found[found["method"] == method]
            ax.plot(dots[axis], dots[key], "o", ms=3.5, color=color, alpha=0.7)
            cells = run.finished[run.finished["method"] == method]
            for value in cells.loc[cells["status"] == "diverged", axis]:
                ax.plot(value, 1.0, **DIVERGED, color=color, transform=ax.get_xaxis_transform())  # at the upper edge
        log = spreads_widely(run, key)
        if log:
            make_log(ax)
        ax.set_title(capitalised(column_name(key)) + (" (log)" if log else ""))
        ax.set_xlabel(AXIS_WORDS.get(axis, axis))
        ax.set_xticks(sorted(run.finished[axis].unique()))
    _legend(figure, run, list(run.methods))
    return figure


def wants_log(run: Run, tag: str) -> bool:
    """Whether a measure over training gets a log axis: norms always, a loss if its values spread widely."""
    values = run.curves.loc[run.curves["tag"] == tag, "value"]
    return LOGGED[tag].log_scale or (tag in LOSSES and ratio(values) > SPREAD)


def spreads_widely(run: Run, column: str) -> bool:
    """Whether a result of the complete cells gets a log axis."""
    return bool(ratio(completed(run)[column].dropna()) > SPREAD)


def method_styles(run: Run) -> dict[str, dict[str, Any]]:
    """The colour and line style of each method, the same in every figure. The line style shows the forward solver, if
    the grid has several. If there are more methods than colours, all but `unrolled` and `implicit` share one colour."""
    first = {UNROLLED: COLORS["unrolled"], IMPLICIT: COLORS["implicit"]}
    several = len({method.solver for method in run.methods.values()}) > 1
    others = iter(OTHER_COLORS if len(run.methods) <= MAX_METHODS else itertools.repeat(OTHER_COLORS[0]))
    styles = {}
    for label, method in run.methods.items():
        dashes = DASHES.get(method.solver, "-.") if several else "-"
        styles[label] = {"color": first.get(method) or next(others), "ls": dashes}
    return styles


def _drawn(run: Run, cell: str, tag: str, log: bool) -> pd.Series:
    """The values of a tag by step; on a log axis only the positive ones."""
    curve = run.curve(cell, tag)
    return curve[curve > 0] if log else curve


def _draw(ax, run: Run, cells: pd.DataFrame, tag: str, median: bool) -> None:
    """Draw the curves of `cells` in the colours of their methods."""
    log, styles = wants_log(run, tag), method_styles(run)
    for method in reversed(run.methods):  # so that unrolled and implicit are on top
        drawn = {cell: _drawn(run, cell, tag, log) for cell in cells.index[cells["method"] == method]}
        drawn = {cell: curve for cell, curve in drawn.items() if len(curve)}
        (color, dash), several = styles[method].values(), len(drawn) > 1
        if several:
            frame = pd.concat(drawn, axis=1).sort_index().interpolate("index", limit_area="inside")
            ax.fill_between(frame.index, frame.min(axis=1), frame.max(axis=1), color=color, alpha=0.16, lw=0)
            if median:
                ax.plot(frame.median(axis=1), color=color, lw=2.0, ls=dash, zorder=3 if dash == "-" else 3.5)
        behind = {"ls": "-", "alpha": 0.35} if median and several else {"ls": dash, "alpha": 0.85}
        for cell, curve in drawn.items():
            ax.plot(curve, color=color, lw=0.9, marker="." if len(curve) == 1 else None, **behind)
            if cells.loc[cell, "status"] == "diverged":
                end = np.nanmax([cells.loc[cell, "step"], curve.index[-1]])
                ax.plot([curve.index[-1], end], [curve.iloc[-1]] * 2, color=color, lw=0.9, ls=":")
                ax.plot(end, curve.iloc[-1], color=color, **DIVERGED)


def _legend(figure: Figure, run: Run, methods: Sequence[str]) -> None:
    """A legend above the figure, of the methods, and of the mark for diverged cells if there are any."""
    styles = method_styles(run)
    handles = [Line2D([], [], **styles[method], lw=2.5, label=method) for method in methods]
    if any(line.get_marker() == DIVERGED["marker"] for ax in figure.axes for line in ax.lines):
        handles.append(Line2D([], [], **DIVERGED | {"mfc": "white"}, label="diverged"))
    if handles:
        width = sum(0.08 * len(handle.get_label()) + 0.65 for handle in handles)  # inches: letters, and line with gaps
        columns = math.ceil(len(handles) / max(1, math.ceil(width / figure.get_figwidth())))
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, handlelength=2.6)


def make_log(ax, axis: str = "y") -> None:
    """Make an axis logarithmic, with plain numbers where they are short, and ticks between decades if there are few
    decades."""
    ax.set(**{f"{axis}scale": "log"})
    scale = ax.yaxis if axis == "y" else ax.xaxis
    low, high = sorted(scale.get_view_interval())
    narrow = high / low < 100
    scale.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8 if axis == "y" else 6))
    scale.set_major_formatter(FuncFormatter(_tick))
    scale.set_minor_formatter(NullFormatter())


@styled
def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `<name>.png` and `<name>.svg`."""
    for kind, options in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, **options)
        write_atomically(folder / f"{name}.{kind}", buffer.getvalue())
        figure.set_layout_engine("none")  # the layout takes half of the time, and is computed once for both formats


def _tick(value: float, _position: int) -> str:
    return f"{value:,g}" if 0.001 <= value < 1e6 else f"$10^{{{round(np.log10(value))}}}$"
