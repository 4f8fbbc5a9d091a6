"""The figures of a grid: curves over steps, one panel a setting; one overview; a sweep over a numeric axis.

Each figure becomes a PNG, an SVG, and a CSV with the numbers behind it. Matplotlib is used through its objects, without
pyplot, so that nothing global changes; it is imported in the functions because the import takes a second.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from implicit_slate.ablation.report.formatting import capitalised
from implicit_slate.ablation.report.run import CROSS_ENTROPY, GRADIENT_NORM, RESIDUAL, SPECTRAL_NORM, Cell, Curve, Run
from implicit_slate.files import write_atomically

COLORS = {"implicit": "#0072B2", "unrolled": "#D55E00"}
OTHER_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; blue and red-orange as in the paper."""

MAX_POINTS = 400
"""A longer curve is drawn as the largest value of each of this many windows: a spike lasts one step and must stay."""

LABELS = {
    SPECTRAL_NORM: "spectral norm of the Jacobian",
    GRADIENT_NORM: "gradient norm of slot attention",
    CROSS_ENTROPY: "validation cross-entropy",
    RESIDUAL: "residual of the solve",
}

CURVE_FIGURES = {
    "spectral_norm": (SPECTRAL_NORM, "The largest singular value, mean over the probe images."),
    "grad_norm": (
        GRADIENT_NORM,
        "L2 norm over its parameters, before clipping; a point is the largest value since the point before.",
    ),
    "cross_entropy": (CROSS_ENTROPY, "Summed over the tokens, mean over the validation images; lower is better."),
    "residual": (RESIDUAL, "‖f(z) − z‖ / ‖f(z)‖ of the last forward step, mean over the probe images."),
}
"""The figures of one measurement over steps: name, tag, and what it is."""

_STYLE = {
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


@dataclass(frozen=True)
class Picture:
    """A figure on disk: `<name>.png`, `<name>.svg`, `<name>.csv` in the report's folder, and what it shows."""

    name: str
    title: str
    caption: str


def colors(run: Run) -> dict[str, str]:
    """One colour a gradient mode, the same in every figure."""
    others = [mode for mode in run.gradients if mode not in COLORS]
    return COLORS | {mode: OTHER_COLORS[i % len(OTHER_COLORS)] for i, mode in enumerate(others)}


def draw_all(run: Run, folder: Path) -> dict[str, Picture]:
    """Draw every figure that the run has numbers for into `folder`, by name."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        drawn = [draw_overview(run, folder)]
        drawn += [draw_curves(run, folder, name, tag, about) for name, (tag, about) in CURVE_FIGURES.items()]
        drawn += [draw_sweep(run, folder, axis) for axis in numeric_axes(run)]
    return {picture.name: picture for picture in drawn if picture}


def draw_curves(run: Run, folder: Path, name: str, tag: str, about: str) -> Picture | None:
    """One measurement over steps: a panel a setting, a colour a mode, a line a seed, a band over seeds."""
    from matplotlib.figure import Figure

    if not any(tag in cell.curves for cell in run.cells):
        return None
    count = len(run.settings)
    columns = {1: 1, 2: 2, 3: 2, 4: 2}.get(count, 3 if count <= 9 else 4)
    rows = -(-count // columns)
    height = 1.9 if tag == RESIDUAL else 2.5
    width = 5.5 if columns == 1 else 3.6 * columns
    figure = Figure(figsize=(width, height * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    log = _wants_log(run.cells, tag)
    for ax, setting in zip(axes, run.settings):
        _draw_panel(ax, run, run.of(setting), tag, log)
        ax.set_title(setting)
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[max(count - columns, 0) : count]:
        ax.tick_params(labelbottom=True)  # nothing may stand below it
    if log:
        _make_log(axes[0])  # the others share its scale and ticks
    figure.supxlabel("training step", fontsize=10)
    figure.supylabel(LABELS[tag] + (" (log)" if log else ""), fontsize=10)
    _legend(figure, run, tag)
    _save(figure, folder, name)
    _save_curves(run, folder, name, (tag,))
    return Picture(name, capitalised(LABELS[tag]), f"{about} {_lines_note(run, tag)}")


def draw_overview(run: Run, folder: Path) -> Picture | None:
    """The three main measurements side by side, all settings together."""
    from matplotlib.figure import Figure

    tags = [
        tag for tag in (SPECTRAL_NORM, GRADIENT_NORM, CROSS_ENTROPY) if any(tag in cell.curves for cell in run.cells)
    ]
    if not tags:
        return None
    figure = Figure(figsize=(3.7 * len(tags), 3.4), layout="constrained")
    for ax, tag in zip(figure.subplots(1, len(tags), squeeze=False).flat, tags):
        log = _wants_log(run.cells, tag)
        _draw_panel(ax, run, run.cells, tag, log, median=True)
        if log:
            _make_log(ax)
        ax.set_title(capitalised(LABELS[tag]) + (" (log)" if log else ""))
        ax.set_xlabel("training step")
    _legend(figure, run, *tags)
    _save(figure, folder, "overview")
    _save_curves(run, folder, "overview", tags)
    pooled = f"All {len(run.settings)} settings together. " if len(run.settings) > 1 else ""
    return Picture(
        "overview",
        "Overview",
        f"{pooled}A thin line is a cell (one training run), a thick line their median; the band spans the cells.",
    )


def draw_sweep(run: Run, folder: Path, axis: str) -> Picture | None:
    """Results over a numeric axis, such as the number of iterations: a dot a cell, a line through medians."""
    from matplotlib.figure import Figure

    measures = {
        "val/cross_entropy": "validation cross-entropy",
        "jacobian/spectral_norm_max": "largest spectral norm",
        "grad_norm_max": "largest gradient norm",
    }
    finished = [cell for cell in run.cells if cell.finished and isinstance(cell.axes.get(axis), (int, float))]
    if not any(cell.number(key) is not None for cell in finished for key in measures):
        return None
    label = {"iterations": "iterations n"}.get(axis, axis)
    figure = Figure(figsize=(3.7 * len(measures), 3.4), layout="constrained")
    for ax, (key, title) in zip(figure.subplots(1, len(measures), squeeze=False).flat, measures.items()):
        everything = [cell.number(key) for cell in finished if cell.number(key) is not None]
        for mode in run.gradients:
            points: dict[float, list[float]] = {}
            for cell in finished:
                if cell.gradient == mode and cell.number(key) is not None:
                    points.setdefault(cell.axes[axis], []).append(cell.number(key))
            if not points:
                continue
            x = sorted(points)
            color = colors(run)[mode]
            ax.fill_between(x, [min(points[v]) for v in x], [max(points[v]) for v in x], color=color, alpha=0.15, lw=0)
            ax.plot(x, [np.median(points[v]) for v in x], color=color, lw=1.8)
            ax.plot(
                [v for v in x for _ in points[v]],
                [y for v in x for y in points[v]],
                "o",
                ms=3.5,
                color=color,
                alpha=0.7,
            )
        ax.set_title(title)
        ax.set_xlabel(label)
        if _spread(everything) > 5:
            _make_log(ax)
        ax.set_xticks(sorted({cell.axes[axis] for cell in finished}))
    _legend(figure, run)
    name = f"over_{axis}"
    _save(figure, folder, name)
    _save_csv(
        folder / f"{name}.csv",
        ["cell", "status", "setting", "gradient", "seed", axis, *measures],
        [
            [c.name, c.status, run.setting(c), c.gradient, c.seed, c.axes[axis], *(c.number(key) for key in measures)]
            for c in finished
        ],
    )
    return Picture(
        name,
        f"Results over {label}",
        "A dot is a finished cell (one training run), the line joins the medians; the band spans the cells.",
    )


def numeric_axes(run: Run) -> list[str]:
    """The varied axes with at least three numeric values."""
    found = []
    for axis in run.setting_axes:
        values = {cell.axes.get(axis) for cell in run.cells}
        if len(values) >= 3 and all(isinstance(value, (int, float)) for value in values):
            found.append(axis)
    return found


def _draw_panel(ax, run: Run, cells: Sequence[Cell], tag: str, log: bool, median: bool = False) -> None:
    for mode in run.gradients:
        color = colors(run)[mode]
        drawn = [(cell, _thin(cell.curves[tag], log)) for cell in cells if cell.gradient == mode and tag in cell.curves]
        if len(drawn) > 1:
            steps, values = _aligned([curve for _, curve in drawn])
            ax.fill_between(steps, np.nanmin(values, 0), np.nanmax(values, 0), color=color, alpha=0.16, lw=0)
            if median:
                ax.plot(steps, np.nanmedian(values, 0), color=color, lw=2.0, zorder=3)
        for cell, curve in drawn:
            few = len(curve.steps) == 1
            ax.plot(
                curve.steps,
                curve.values,
                color=color,
                lw=0.9,
                alpha=0.35 if median else 0.85,
                marker="." if few else None,
            )
            if cell.status == "diverged":
                end = max(cell.number("step") or 0, curve.steps[-1])
                ax.plot([curve.steps[-1], end], [curve.values[-1]] * 2, color=color, lw=0.9, ls=":")
                ax.plot(
                    end, curve.values[-1], marker="X", ms=8, color=color, mec="black", mew=0.8, zorder=4, clip_on=False
                )


def _make_log(ax) -> None:
    """A log axis with plain numbers where they are short, also between the decades if these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    narrow = high / low < 50
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8))
    ax.yaxis.set_major_formatter(FuncFormatter(_tick))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _tick(value: float, _position: int) -> str:
    return f"{value:,g}" if 0.001 <= value < 1e6 else f"$10^{{{round(np.log10(value))}}}$"


def _thin(curve: Curve, log: bool) -> Curve:
    steps, values = curve.steps, curve.values
    if log:
        steps, values = steps[values > 0], values[values > 0]
    if len(steps) <= MAX_POINTS:
        return Curve(steps, values) if len(steps) else curve
    windows = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return Curve(np.array([steps[w[-1]] for w in windows]), np.array([values[w].max() for w in windows]))


def _aligned(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """All steps (T,) and the curves at these steps (len(curves), T): interpolated within a curve, NaN after its end."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    inside = [np.interp(steps, curve.steps, curve.values, left=np.nan, right=np.nan) for curve in curves]
    return steps, np.array(inside)


def _spread(values: Sequence[float]) -> float:
    positive = [value for value in values if value > 0]
    return max(positive) / min(positive) if positive else 1.0


def _wants_log(cells: Sequence[Cell], tag: str) -> bool:
    """Norms and residuals always; a loss where the cells spread over more than a factor of five."""
    return (
        tag != CROSS_ENTROPY
        or _spread([v for cell in cells if tag in cell.curves for v in cell.curves[tag].values]) > 5
    )


def _legend(figure, run: Run, *tags: str) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colors(run)[mode], lw=2.5, label=mode) for mode in run.gradients]
    if any(cell.status == "diverged" and tag in cell.curves for cell in run.cells for tag in tags):
        handles.append(Line2D([], [], ls="", marker="X", ms=8, color="white", mec="black", label="diverged"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


def _lines_note(run: Run, tag: str) -> str:
    seeds = max(len(run.of(setting, mode)) for setting in run.settings for mode in run.gradients)
    note = "A line is a seed; the band spans the seeds." if seeds > 1 else "One seed."
    if any(len(cell.curves[tag].steps) > MAX_POINTS for cell in run.cells if tag in cell.curves):
        note += f" Drawn as the largest value of each of {MAX_POINTS} windows; the CSV has every point."
    return note


def _save(figure, folder: Path, name: str) -> None:
    for kind, options in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, **options)
        write_atomically(folder / f"{name}.{kind}", buffer.getvalue())
        figure.set_layout_engine("none")  # it is laid out now, and that is half the work


def _save_curves(run: Run, folder: Path, name: str, tags: Sequence[str]) -> None:
    rows = [
        [cell.name, cell.status, run.setting(cell), cell.gradient, cell.seed, tag, int(step), float(value)]
        for cell in run.cells
        for tag in tags
        if tag in cell.curves
        for step, value in zip(cell.curves[tag].steps, cell.curves[tag].values)
    ]
    _save_csv(
        folder / f"{name}.csv", ["cell", "status", "setting", "gradient", "seed", "measurement", "step", "value"], rows
    )


def _save_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    write_atomically(path, text.getvalue())
