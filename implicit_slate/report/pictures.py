"""Reconstructions and slot masks side by side: what the cells drew, and the same images in each mode."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from implicit_slate.report.figures import styled
from implicit_slate.report.run import Run, damage_named

MAX_IMAGES = 6
"""Rows of a picture of the same images."""

MAX_COLUMNS = 16
"""Columns of such a picture. Modes that need more, with many slots, stand below each other."""

GAP = 0.06
"""Between images, as a part of their side."""


def panels(run: Run) -> tuple[list[str], list[str]]:
    """The cells whose `panels.png` the report shows, and the others that have one, both by setting and seed.

    It shows one cell of each method, of the first setting and seed; of a grid that only compares two modes, all.
    """
    by = ["setting", *(["seed"] if "seed" in run.axes else []), "method"]
    pictured = run.cells.loc[run.pictured].sort_values(by, kind="stable")
    few = len(run.settings) == 1 and len(run.methods) <= 2
    shown = pictured if few else pictured.drop_duplicates("method").sort_values("method")
    return list(shown.index), list(pictured.index.difference(shown.index, sort=False))


def same_images(run: Run, split: str, setting: str) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of `evaluation/<split>_panels.npz` by cell, of the first two methods of a setting that have some, one
    complete cell each: of the first seed that both have, else of the first.

    Returns:
        of each cell, all uint8: `truth` and `reconstruction` (B, H, W, 3), `masks` (B, K, H, W).
    Raises:
        UserError: a file is damaged.
    """
    cells = run.cells[(run.cells["setting"] == setting) & (run.cells["status"] == "complete")].reset_index()
    paths = {cell: run.folder(cell) / "evaluation" / f"{split}_panels.npz" for cell in cells["cell"]}
    cells = cells[[path.exists() for path in paths.values()]].assign(seed=lambda found: found.get("seed", 0))
    seeds = cells.pivot(index="seed", columns="method", values="cell").iloc[:, :2]
    common = seeds.dropna()
    chosen = common.iloc[0] if len(common) else [seeds[method].dropna().iloc[0] for method in seeds]
    return {cell: _read_arrays(paths[cell]) for cell in chosen}


@styled
def same_images_figure(run: Run, seen: dict[str, dict[str, np.ndarray]]) -> Figure:
    """The truth, then of each cell of `same_images` its method above its reconstruction and the image where each of its
    slots looks, fading to white where others do."""
    truth = next(iter(seen.values()))["truth"][:MAX_IMAGES]
    first = (["truth"], truth[:, None])
    groups = {}
    for cell, arrays in seen.items():
        masks = arrays["masks"][:MAX_IMAGES, ..., None] / 255
        slots = truth[:, None] * masks + 255 * (1 - masks)
        titles = ["through slots", *(f"slot {k + 1}" for k in range(slots.shape[1]))]
        images = np.concatenate([arrays["reconstruction"][:MAX_IMAGES, None], slots.astype(np.uint8)], 1)
        groups[run.cells.loc[cell, "method"]] = (titles, images)
    wide = 1 + sum(len(titles) for titles, _ in groups.values()) > MAX_COLUMNS
    lines = [[("", first), group] for group in groups.items()] if wide else [[("", first), *groups.items()]]
    widths = [len(titles) for _, (titles, _) in lines[0]]
    size = (0.95 * sum(widths) + 0.3, (0.95 * len(truth) + 0.6) * len(lines))
    figure = Figure(figsize=size, layout="compressed")  # for axes of a fixed shape
    axes = figure.subplots(len(lines), len(widths), squeeze=False, width_ratios=widths)
    for row, line in zip(axes, lines):
        for ax, (method, (titles, images)) in zip(row, line):
            ax.imshow(mosaic(images), interpolation="nearest")
            step = images.shape[3] * (1 + GAP)
            ax.set_xticks([(k + 0.5) * step for k in range(len(titles))], titles, fontsize=7.5)
            ax.tick_params(top=False, bottom=False, labeltop=True, labelbottom=False, pad=1)
            ax.xaxis.set_label_position("top")
            ax.set_xlabel(method, fontsize=10.5, fontweight="bold")  # above the columns' titles
            ax.set_yticks([])
            ax.grid(False)
            ax.spines[:].set_visible(False)
    return figure


def mosaic(images: np.ndarray) -> np.ndarray:
    """Images (rows, columns, H, W, 3) as one image, white between them, behind and below each."""
    rows, columns, height, width, _ = images.shape
    gaps = [(0, round(GAP * height) or 1), (0, round(GAP * width) or 1)]
    framed = np.pad(images, [(0, 0), (0, 0), *gaps, (0, 0)], constant_values=255)
    return framed.transpose(0, 2, 1, 3, 4).reshape(rows * framed.shape[2], columns * framed.shape[3], 3)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with damage_named(path):
        with np.load(path) as content:
            arrays = {name: content[name] for name in ("truth", "reconstruction", "masks")}
        truth, made, masks = (array.shape for array in arrays.values())
        fits = len(truth) == len(masks) == 4 and truth == made and truth[:3] == (masks[0], *masks[2:]) and truth[3] == 3
        if not fits or {array.dtype for array in arrays.values()} != {np.dtype(np.uint8)}:
            raise ValueError(f"expected uint8 (B, H, W, 3) twice and (B, K, H, W), got {truth}, {made} and {masks}")
    return arrays
