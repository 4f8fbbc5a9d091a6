"""The figures of a grid's results: methods side by side, and numeric axes from left to right."""

from pathlib import Path

import numpy as np

from implicit_slate.ablation.report.drawing import Picture, colors, dashes, legend, make_log, save, save_cells, spread
from implicit_slate.ablation.report.formatting import capitalised
from implicit_slate.ablation.report.run import COSINE, Run


def draw_methods(run: Run, folder: Path) -> Picture | None:
    """Results by method, the lowest loss first, where a grid compares more than two in one setting."""
    from matplotlib.figure import Figure

    measures = _measures(run)
    finished = [cell for cell in run.cells if cell.finished]
    losses = {
        method: np.median(values)
        for method in run.methods
        if (values := [v for cell in run.of(method=method) if (v := cell.number(run.loss)) is not None])
    }
    if len(run.methods) < 3 or len(run.settings) > 1 or not losses:
        return None
    # A method without a loss, because all its cells diverged or wait, comes last.
    methods = sorted(run.methods, key=lambda method: losses.get(method, np.inf))
    figure = Figure(figsize=(3.6 * len(measures) + 0.8, 0.33 * len(methods) + 1.2), layout="constrained")
    for ax, (key, title) in zip(figure.subplots(1, len(measures), sharey=True, squeeze=False).flat, measures.items()):
        for row, method in enumerate(methods):
            cells = [cell for cell in run.of(method=method) if cell.finished]
            values = [value for cell in cells if (value := cell.number(key)) is not None]
            color = colors(run)[method]
            ax.plot(values, [row] * len(values), "o", ms=5, color=color, alpha=0.75, zorder=3)
            if values:
                ax.plot(np.median(values), row, "|", ms=15, mew=2.2, color=color, zorder=3)
            if any(cell.status == "diverged" for cell in cells):
                mark = {"marker": "X", "ms": 8, "color": color, "mec": "black", "mew": 0.8, "zorder": 4}
                ax.plot(1.0, row, **mark, transform=ax.get_yaxis_transform(), clip_on=False)  # at the right edge
        log = spread([v for cell in finished if (v := cell.number(key)) is not None]) > 5
        if log:
            make_log(ax, "x")
        ax.set_title(capitalised(title) + (" (log)" if log else ""))
    figure.axes[0].set_yticks(range(len(methods)), [run.labels[method] for method in methods])
    figure.axes[0].set_ylim(len(methods) - 0.5, -0.5)
    legend(figure, run, [], any(cell.status == "diverged" for cell in run.cells))
    save(figure, folder, "by_method")
    rows = [[[cell.number(key) for key in measures]] for cell in finished]
    save_cells(run, folder / "by_method.csv", finished, list(measures), rows)
    return Picture(
        "by_method",
        "Results by method",
        f"Sorted by the median {run.loss_name}. A dot is a finished cell (one training run), a bar the median.",
    )


def draw_sweep(run: Run, folder: Path, axis: str) -> Picture | None:
    """Results over a numeric axis, such as the number of iterations: a dot a cell, a line through medians."""
    from matplotlib.figure import Figure

    measures = _measures(run)
    finished = [cell for cell in run.cells if cell.finished and isinstance(cell.axes.get(axis), (int, float))]
    if not any(cell.number(key) is not None for cell in finished for key in measures):
        return None
    label = {"iterations": "iterations n"}.get(axis, axis)
    figure = Figure(figsize=(3.7 * len(measures), 3.4), layout="constrained")
    for ax, (key, title) in zip(figure.subplots(1, len(measures), squeeze=False).flat, measures.items()):
        everything = [cell.number(key) for cell in finished if cell.number(key) is not None]
        for method in run.methods[::-1]:
            points: dict[float, list[float]] = {}
            for cell in finished:
                if cell.method == method and cell.number(key) is not None:
                    points.setdefault(cell.axes[axis], []).append(cell.number(key))
            if not points:
                continue
            x, color = sorted(points), colors(run)[method]
            ax.fill_between(x, [min(points[v]) for v in x], [max(points[v]) for v in x], color=color, alpha=0.15, lw=0)
            ax.plot(x, [np.median(points[v]) for v in x], color=color, lw=1.8, ls=dashes(run)[method])
            dots = [(v, y) for v in x for y in points[v]]
            ax.plot(*zip(*dots), "o", ms=3.5, color=color, alpha=0.7)
        ax.set_title(capitalised(title))
        ax.set_xlabel(label)
        if spread(everything) > 5:
            make_log(ax)
        ax.set_xticks(sorted({cell.axes[axis] for cell in finished}))
    legend(figure, run, run.methods, diverged=False)
    name = f"over_{axis}"
    save(figure, folder, name)
    header = [axis, *measures]
    rows = [[[cell.axes[axis], *(cell.number(key) for key in measures)]] for cell in finished]
    save_cells(run, folder / f"{name}.csv", finished, header, rows)
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


def _measures(run: Run) -> dict[str, str]:
    return {
        run.loss: run.loss_name,
        "jacobian/spectral_norm_max": "largest spectral norm",
        "grad_norm_max": "largest gradient norm",
    } | ({COSINE: "cosine to the exact gradient"} if any(COSINE in cell.curves for cell in run.cells) else {})
