"""The figures over training: an overview, and one of each measurement.

Few methods share a panel, each in its colour, and every setting has a panel; where there are more methods than colours,
every method has a panel of its own, in front of all the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from implicit_slate.ablation.report.curve_kinds import CURVE_FIGURES
from implicit_slate.ablation.report.drawing import (
    MAX_METHODS,
    MAX_POINTS,
    Picture,
    aligned,
    colors,
    dashes,
    legend,
    make_log,
    save,
    save_cells,
    spread,
    thin,
)
from implicit_slate.ablation.report.formatting import capitalised
from implicit_slate.ablation.report.methods import Method
from implicit_slate.ablation.report.run import GRADIENT_NORM, LOSSES, RESIDUAL, SPECTRAL_NORM, Cell, Run

EVALUATIONS = "in brackets: evaluations of f a step"
"""What the notes in a legend are."""


@dataclass(frozen=True)
class Panel:
    """What one pair of axes shows: some cells, and behind them others in grey."""

    title: str
    cells: Sequence[Cell]
    behind: Sequence[Cell] = ()


def draw_curves(run: Run, folder: Path, tag: str) -> Picture | None:
    """One measurement over steps: a panel a setting, a colour a method, a line a seed, a band over seeds."""
    from matplotlib.figure import Figure

    if not any(tag in cell.curves for cell in run.cells):
        return None
    name, label, about = CURVE_FIGURES[tag]
    panels = _panels(run)
    count, crowded = len(panels), len(run.methods) > 2
    columns = {1: 1, 2: 2, 3: 2, 4: 2}.get(count, 3 if count <= 9 else 4)
    rows = -(-count // columns)
    height = 1.9 if tag == RESIDUAL else 2.5
    width, height = (6.5, 1.5 * height) if crowded and count == 1 else (5.5 if columns == 1 else 3.6 * columns, height)
    figure = Figure(figsize=(width, height * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    log = wants_log(run.cells, tag)
    for ax, panel in zip(axes, panels):
        for cell in panel.behind:
            if tag in cell.curves:
                curve = thin(cell.curves[tag], log)
                ax.plot(curve.steps, curve.values, color="#bbbbbb", lw=0.6, alpha=0.7, zorder=1)
        _draw_cells(ax, run, panel.cells, tag, log, median=crowded)
        ax.set_title(panel.title if count > 1 else None)
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[max(count - columns, 0) : count]:
        ax.tick_params(labelbottom=True)  # nothing may stand below it
    if log:
        make_log(axes[0])  # the others share its scale and ticks
    figure.supxlabel("training step", fontsize=10)
    figure.supylabel(label + (" (log)" if log else ""), fontsize=10)
    a_method_a_panel = any(panel.behind for panel in panels)
    legend(figure, run, [] if a_method_a_panel else run.methods, _diverged(run, tag), _evaluations(run), EVALUATIONS)
    save(figure, folder, name)
    _save_curves(run, folder, name, (tag,))
    note = _lines_note(run, tag, crowded)
    if a_method_a_panel:
        note += f" In grey all other cells{', all settings together' if len(run.settings) > 1 else ''}."
    return Picture(name, capitalised(label), f"{about} {note}")


def draw_overview(run: Run, folder: Path) -> Picture | None:
    """The three main measurements side by side, all settings together; not for more methods than colours."""
    from matplotlib.figure import Figure

    tags = [tag for tag in (SPECTRAL_NORM, GRADIENT_NORM, run.loss) if any(tag in cell.curves for cell in run.cells)]
    if not tags or len(run.methods) > MAX_METHODS:
        return None
    figure = Figure(figsize=(3.7 * len(tags), 3.4), layout="constrained")
    for ax, tag in zip(figure.subplots(1, len(tags), squeeze=False).flat, tags):
        log = wants_log(run.cells, tag)
        _draw_cells(ax, run, run.cells, tag, log, median=True)
        if log:
            make_log(ax)
        ax.set_title(capitalised(CURVE_FIGURES[tag].label) + (" (log)" if log else ""))
        ax.set_xlabel("training step")
    legend(figure, run, run.methods, any(_diverged(run, tag) for tag in tags), _evaluations(run), EVALUATIONS)
    save(figure, folder, "overview")
    _save_curves(run, folder, "overview", tags)
    pooled = f"All {len(run.settings)} settings together. " if len(run.settings) > 1 else ""
    return Picture(
        "overview",
        "Overview",
        f"{pooled}A thin line is a cell (one training run), a thick line their median; the band spans the cells.",
    )


def wants_log(cells: Sequence[Cell], tag: str) -> bool:
    """Norms and residuals always; a loss where the cells spread over more than a factor of five; others never."""
    return tag in (SPECTRAL_NORM, GRADIENT_NORM, RESIDUAL) or (
        tag in LOSSES and spread([v for cell in cells if tag in cell.curves for v in cell.curves[tag].values]) > 5
    )


def _panels(run: Run) -> list[Panel]:
    if len(run.methods) <= MAX_METHODS:
        return [Panel(setting, run.of(setting)) for setting in run.settings]
    return [
        Panel(run.labels[method], run.of(method=method), [cell for cell in run.cells if cell.method != method])
        for method in run.methods
    ]


def _draw_cells(ax, run: Run, cells: Sequence[Cell], tag: str, log: bool, median: bool = False) -> None:
    for method in run.methods[::-1]:  # unrolled and implicit on top, and dashes above lines
        color, dash = colors(run)[method], dashes(run)[method]
        drawn = [(cell, thin(cell.curves[tag], log)) for cell in cells if cell.method == method and tag in cell.curves]
        if len(drawn) > 1:
            steps, values = aligned([curve for _, curve in drawn])
            ax.fill_between(steps, np.nanmin(values, 0), np.nanmax(values, 0), color=color, alpha=0.16, lw=0)
            if median:
                ax.plot(steps, np.nanmedian(values, 0), color=color, lw=2.0, ls=dash, zorder=3 if dash == "-" else 3.5)
        for cell, curve in drawn:
            behind_median = median and len(drawn) > 1
            ax.plot(
                curve.steps,
                curve.values,
                color=color,
                lw=0.9,
                ls="-" if behind_median else dash,
                alpha=0.35 if behind_median else 0.85,
                marker="." if len(curve.steps) == 1 else None,
            )
            if cell.status == "diverged":
                end = max(cell.number("step") or 0, curve.steps[-1])
                ax.plot([curve.steps[-1], end], [curve.values[-1]] * 2, color=color, lw=0.9, ls=":")
                ax.plot(
                    end, curve.values[-1], marker="X", ms=8, color=color, mec="black", mew=0.8, zorder=4, clip_on=False
                )


def _evaluations(run: Run) -> dict[Method, str]:
    """What a step of each method costs, where a grid compares solvers in one setting: evaluations of f."""
    notes = {}
    for method in run.methods if run.several_solvers and len(run.settings) == 1 else ():
        counts = [value for cell in run.of(method=method) if (value := cell.number("evaluations")) is not None]
        if counts:
            notes[method] = "–".join(f"{count:g}" for count in sorted({min(counts), max(counts)}))
    return notes


def _diverged(run: Run, tag: str) -> bool:
    return any(cell.status == "diverged" and tag in cell.curves for cell in run.cells)


def _lines_note(run: Run, tag: str, median: bool) -> str:
    seeds = max(len(run.of(setting, method)) for setting in run.settings for method in run.methods)
    lines = "A thin line is a seed, a thick one the median; the band spans the seeds."
    note = "One seed." if seeds < 2 else lines if median else "A line is a seed; the band spans the seeds."
    if any(len(cell.curves[tag].steps) > MAX_POINTS for cell in run.cells if tag in cell.curves):
        note += f" Drawn as the largest value of each of {MAX_POINTS} windows; the CSV has every point."
    return note


def _save_curves(run: Run, folder: Path, name: str, tags: Sequence[str]) -> None:
    def points(cell: Cell) -> list[list]:
        curves = [(tag, cell.curves[tag]) for tag in tags if tag in cell.curves]
        return [
            [tag, int(step), float(value)] for tag, curve in curves for step, value in zip(curve.steps, curve.values)
        ]

    header = ["measurement", "step", "value"]
    save_cells(run, folder / f"{name}.csv", run.cells, header, [points(cell) for cell in run.cells])
