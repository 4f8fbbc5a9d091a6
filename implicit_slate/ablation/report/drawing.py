"""How the report's figures look, and how they get to disk: PNG, SVG, and a CSV with the numbers behind them.

Matplotlib is used through its objects, without pyplot, so that nothing global changes; it is imported in the functions
because the import takes a second.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from implicit_slate.ablation.report.methods import IMPLICIT, UNROLLED, Method
from implicit_slate.ablation.report.run import Cell, Curve, Run
from implicit_slate.files import write_atomically

COLORS = {IMPLICIT: "#0072B2", UNROLLED: "#D55E00"}
OTHER_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; blue and red-orange as in the paper."""

DASHES = {"picard": "-", "broyden": (0, (4, 1.5)), "anderson": (0, (1.2, 1.2))}
"""The forward solver shows in the line, too: a second mark beside the colour."""

MAX_METHODS = len(OTHER_COLORS)
"""So many methods share a panel at most, which leaves a colour each whichever they are."""

MAX_POINTS = 400
"""A longer curve is drawn as the largest value of each of this many windows: a spike lasts one step and must stay."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "svg.hashsalt": "implicit-slate",  # the same numbers make the same file
}
"""Matplotlib's settings for all figures."""


@dataclass(frozen=True)
class Picture:
    """A figure on disk: `<name>.png`, `<name>.svg`, `<name>.csv` in the report's folder, and what it shows."""

    name: str
    title: str
    caption: str


def colors(run: Run) -> dict[Method, str]:
    """One colour a method, the same in every figure; more methods than colours all have the first of the others."""
    others = [method for method in run.methods if method not in COLORS]
    few = len(run.methods) <= MAX_METHODS
    return COLORS | {method: OTHER_COLORS[i if few else 0] for i, method in enumerate(others)}


def dashes(run: Run) -> dict[Method, object]:
    """One line style a method: that of its forward solver, where the grid has several."""
    return {method: DASHES.get(method.solver, "-.") if run.several_solvers else "-" for method in run.methods}


def make_log(ax, axis: str = "y") -> None:
    """A log axis with plain numbers where they are short, also between the decades if these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set(**{f"{axis}scale": "log"})
    low, high = ax.get_ylim() if axis == "y" else ax.get_xlim()
    narrow = high / low < 50
    scale = ax.yaxis if axis == "y" else ax.xaxis
    scale.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8 if axis == "y" else 6))
    scale.set_major_formatter(FuncFormatter(_tick))
    scale.set_minor_formatter(NullFormatter())


def spread(values: Sequence[float]) -> float:
    """The ratio of the largest to the least value; 1 where one is not positive, which no log axis can show."""
    return max(values) / min(values) if values and min(values) > 0 else 1.0


def thin(curve: Curve, log: bool) -> Curve:
    """The curve in at most `MAX_POINTS` points, spikes kept; on a log axis only what is positive."""
    steps, values = curve.steps, curve.values
    if log:
        steps, values = steps[values > 0], values[values > 0]
    if len(steps) <= MAX_POINTS:
        return Curve(steps, values) if len(steps) else curve
    windows = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return Curve(np.array([steps[w[-1]] for w in windows]), np.array([values[w].max() for w in windows]))


def aligned(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """All steps (T,) and the curves at these steps (len(curves), T): interpolated within a curve, NaN after its end."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    inside = [np.interp(steps, curve.steps, curve.values, left=np.nan, right=np.nan) for curve in curves]
    return steps, np.array(inside)


def legend(
    figure, run: Run, methods: Sequence[Method], diverged: bool, notes: dict[Method, str] | None = None, title: str = ""
) -> None:
    """The methods above the figure, each with its note in brackets, in as many lines as its width asks for."""
    from matplotlib.lines import Line2D

    handles = []
    for method in methods:
        label = run.labels[method] + (f" ({notes[method]})" if notes and method in notes else "")
        handles.append(Line2D([], [], color=colors(run)[method], ls=dashes(run)[method], lw=2.5, label=label))
    if diverged:
        handles.append(Line2D([], [], ls="", marker="X", ms=8, color="white", mec="black", label="diverged"))
    if not handles:
        return
    width = sum(0.08 * len(handle.get_label()) + 0.65 for handle in handles)  # inches: letters, a line, its gaps
    lines = max(1, math.ceil(width / figure.get_figwidth()))
    columns = math.ceil(len(handles) / lines)
    place = {"loc": "outside upper center", "ncols": columns, "frameon": False, "handlelength": 2.6}
    figure.legend(handles=handles, title=title if notes else None, **place)


def save(figure, folder: Path, name: str) -> None:
    """Write `<name>.png` and `<name>.svg`."""
    for kind, options in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, **options)
        write_atomically(folder / f"{name}.{kind}", buffer.getvalue())
        figure.set_layout_engine("none")  # it is laid out now, and that is half the work


def save_cells(
    run: Run, path: Path, cells: Sequence[Cell], header: Sequence[str], rows: Sequence[Sequence[Sequence]]
) -> None:
    """Write `path`, a CSV: which cell, and behind it the values of each of its rows under `header`."""
    first = ["cell", "status", "setting", *run.method_axes, "seed"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*first, *header])
    for cell, of_cell in zip(cells, rows, strict=True):
        methods = cell.method[: len(run.method_axes)]
        place = [cell.name, cell.status, run.setting(cell), *methods, cell.seed]
        writer.writerows([["" if value is None else value for value in [*place, *row]] for row in of_cell])
    write_atomically(path, text.getvalue())


def _tick(value: float, _position: int) -> str:
    return f"{value:,g}" if 0.001 <= value < 1e6 else f"$10^{{{round(np.log10(value))}}}$"
