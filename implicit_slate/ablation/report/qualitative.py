"""The paper's qualitative panel: both modes on the same images, from the arrays that `evaluate` left."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from implicit_slate.ablation.report.document import Block, Heading, Image, Images, Paragraph, link
from implicit_slate.ablation.report.evaluations import SPLITS
from implicit_slate.ablation.report.methods import Method
from implicit_slate.ablation.report.run import Cell, Run
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically

MAX_IMAGES = 6
"""Rows of a picture."""

MAX_PICTURES = 4
"""So many settings are shown; the pictures of the others are linked."""

MAX_WIDTH = 1600
"""In pixels. Modes that need more, with many slots, stand below each other: a page would show them too small."""

HEADER, GAP = 24, 14
"""Of a picture, in pixels: the line with the modes' names, and what parts the modes."""


@dataclass(frozen=True)
class Arrays:
    """Some images as one cell sees them, all uint8: truth and reconstruction (B, H, W, 3), masks (B, K, H, W)."""

    cell: Cell
    truth: np.ndarray
    reconstruction: np.ndarray
    masks: np.ndarray


def qualitative(run: Run, split: str, folder: Path) -> list[Block]:
    """A picture a setting, written into `folder`; nothing where no cell has left arrays."""
    pictures, different = {}, []
    for setting in run.settings:
        seen = _first_seed(run, setting, split)
        if not seen:
            continue
        if any(not np.array_equal(arrays.truth, seen[0].truth) for arrays in seen):
            different.append(setting)
            continue
        name = f"qualitative_{_slug(setting)}.png" if run.setting_axes else "qualitative.png"
        write_atomically(folder / name, draw(run, seen))
        cells = "; ".join(run.place(arrays.cell) for arrays in seen)
        caption = f"{cells}. {link('Full size', name)}"
        pictures[setting] = Image(name, f"The same images in each mode: {setting}", caption)
    if not pictures and not different:
        return []
    text = (
        f"The same images of the {SPLITS[split]} split as each mode sees them, one seed each: the reconstruction "
        "through the slots, and for each slot the image where it looks, fading to white where others do. Slots have no "
        "order."
    )
    if different:
        text += f" The modes were evaluated on different images in {'; '.join(different)}: no picture."
    shown, hidden = list(pictures.values())[:MAX_PICTURES], list(pictures.items())[MAX_PICTURES:]
    if hidden:
        text += f" Further settings: {' · '.join(link(setting, image.file) for setting, image in hidden)}."
    blocks: list[Block] = [Heading("The same images in each mode", level=3), Paragraph(text)]
    return blocks + [Images([image]) for image in shown]


def draw(run: Run, seen: Sequence[Arrays]) -> bytes:
    """The picture as PNG: the truth, then of each cell its method above its reconstruction and its slots' masks."""
    import torch  # 3 s to import, and only this needs it

    from implicit_slate.pictures import panel_columns, tile, to_png

    def images(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array[:MAX_IMAGES]).permute(0, 3, 1, 2) / 255

    truth = images(seen[0].truth)
    first = ("", tile(truth[:, None], ["truth"]))
    groups = []
    for arrays in seen:
        masks = torch.from_numpy(arrays.masks[:MAX_IMAGES]) / 255
        columns = panel_columns(truth, images(arrays.reconstruction), masks, None)
        del columns["truth"]
        groups.append((run.labels[arrays.cell.method], tile(torch.stack(list(columns.values()), 1), list(columns))))
    picture = _side_by_side([first, *groups])
    return to_png(picture if picture.width <= MAX_WIDTH else _stacked([_side_by_side([first, g]) for g in groups]))


def read_arrays(cell: Cell, path: Path) -> Arrays:
    """The arrays in `<split>_panels.npz`; UserError naming the file where it is damaged."""
    try:
        with np.load(path) as content:
            arrays = Arrays(cell, *(content[name] for name in ("truth", "reconstruction", "masks")))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as the arrays of panels: {' '.join(str(error).split())}") from error
    shape, masks = arrays.truth.shape, arrays.masks.shape
    fits = len(shape) == 4 and shape[-1] == 3 and arrays.reconstruction.shape == shape
    if not fits or len(masks) != 4 or (masks[0], *masks[2:]) != shape[:3]:
        raise UserError(
            f"{path}: expected truth and reconstruction (B, H, W, 3) and masks (B, K, H, W), "
            f"got {shape}, {arrays.reconstruction.shape} and {masks}"
        )
    if any(array.dtype != np.uint8 for array in (arrays.truth, arrays.reconstruction, arrays.masks)):
        raise UserError(f"{path}: expected arrays of bytes (uint8)")
    return arrays


def _first_seed(run: Run, setting: str, split: str) -> list[Arrays]:
    """Of the first two methods that have arrays, one cell each: of the first seed that both have, else of the first."""
    cells: dict[Method, dict[str, tuple[Cell, Path]]] = {}
    for method in run.methods:
        for cell in run.of(setting, method):
            path = cell.evaluations[split].files.get("arrays") if split in cell.evaluations else None
            if path is not None and cell.status == "complete":
                cells.setdefault(method, {})[str(cell.seed)] = (cell, path)
    chosen = list(cells.values())[:2]
    common = [seed for seed in chosen[0] if all(seed in others for others in chosen)] if chosen else []
    return [read_arrays(*seeds[common[0] if common else next(iter(seeds))]) for seeds in chosen]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _side_by_side(groups: Sequence[tuple[str, Picture.Image]]) -> Picture.Image:
    """Pictures of one height from left to right, each below its name, a line between them."""
    width = sum(picture.width for _, picture in groups) + GAP * (len(groups) - 1)
    canvas = Picture.new("RGB", (width, HEADER + groups[0][1].height), "white")
    pen, font, left = ImageDraw.Draw(canvas), ImageFont.load_default(size=16), 0
    for name, picture in groups:
        if left:
            pen.line([(left - GAP / 2, 6), (left - GAP / 2, canvas.height - 6)], fill="#999999", width=1)
        pen.text((left + picture.width / 2, HEADER / 2 + 2), name, fill="black", font=font, anchor="mm")
        canvas.paste(picture, (left, HEADER))
        left += picture.width + GAP
    return canvas


def _stacked(pictures: Sequence[Picture.Image]) -> Picture.Image:
    """Pictures one below the other."""
    height = sum(picture.height for picture in pictures)
    canvas, top = Picture.new("RGB", (max(picture.width for picture in pictures), height), "white"), 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas
