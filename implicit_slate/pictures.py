"""Pictures of images in rows and columns, also for notebooks. Images are tensors or arrays; nothing here needs PyTorch.

views = model.views(image)
draw(image, views.reconstruction, views.masks).save("slots.png")
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

    Images = Tensor | np.ndarray

TILE = 96
"""Images are enlarged by a whole factor to sides of at least this many pixels, so that titles fit above them."""
GAP, TITLE_HEIGHT = 4, 22

LARGE_TILE, GROUP_GAP = 160, 28
"""`compare`: the least side of an image, so that titles fit above it, and the space between groups, in pixels."""

SEGMENT_COLORS = (
    "#8C99AD", "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2",
    "#DDDDDD", "#6A3D9A", "#882255", "#999933",
)  # fmt: skip
"""One colour for each slot of an image: a quiet one for the slot with the largest mask, mostly the ground, then Okabe
and Ito's palette, which colour-blind readers can tell apart, then four more. They begin again after twelve slots."""


class Group(NamedTuple):
    """What one model makes of some images, for `compare`."""

    title: str
    lines: Sequence[str]
    """Smaller lines under the title."""
    color: str
    """Of the title."""
    reconstruction: "Images"
    """(B, 3, H, W) in [0, 1]."""
    masks: "Images"
    """(B, K, H, W) in [0, 1]."""


def panel_columns(
    truth: "Images", reconstruction: "Images", masks: "Images", ceiling: "Images | None"
) -> "dict[str, Images]":
    """The columns of a panel by their titles, each (B, 3, H, W): truth, dVAE (if there is one), through the slots, and
    for each slot the image where the slot looks, fading to white where others do.

    Args:
        truth, reconstruction, ceiling: (B, 3, H, W) in [0, 1]; see `models.SlotModel`.
        masks: (B, K, H, W) in [0, 1].
    """
    columns = {"truth": truth} | ({} if ceiling is None else {"dVAE": ceiling}) | {"through slots": reconstruction}
    for k in range(masks.shape[1]):
        mask = masks[:, k, None]
        columns[f"slot {k + 1}"] = truth * mask + 1 - mask
    return columns


def panel_picture(truth: "Images", reconstruction: "Images", masks: "Images", ceiling: "Images | None") -> Image.Image:
    """One row per image, with the columns of `panel_columns` and their titles."""
    columns = panel_columns(truth, reconstruction, masks, ceiling)
    return tile(np.stack([to_array(column) for column in columns.values()], 1), list(columns))


def tile(images: "Images", titles: Sequence[str]) -> Image.Image:
    """(rows, columns, 3, H, W) in [0, 1] as one picture, with a title above each column."""
    pixels = enlarged(images, -(-TILE // min(images.shape[-2:])))
    rows, columns, height, width, _ = pixels.shape
    canvas = Image.new("RGB", (columns * (width + GAP) + GAP, TITLE_HEIGHT + rows * (height + GAP)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for column, title in enumerate(titles):
        left = GAP + column * (width + GAP)
        draw.text((left + width / 2, TITLE_HEIGHT / 2), title, fill="black", font=font, anchor="mm")
        for row in range(rows):
            canvas.paste(Image.fromarray(pixels[row, column]), (left, TITLE_HEIGHT + row * (height + GAP)))
    return canvas


def segments(image: "Images", masks: "Images") -> np.ndarray:
    """The slots' masks as one picture: each pixel has the colour of the slot with the largest share of it, as strong as
    that share exceeds the second one (dark where slots share the pixel), over the dimmed image in grey.

    In each image the slots get their colours by the size of their masks, the largest first.

    Args:
        image: (B, 3, H, W) in [0, 1].
        masks: (B, K, H, W), which sum to 1 over slots.
    Returns:
        float32 (B, 3, H, W) in [0, 1].
    """
    palette = np.array([ImageColor.getrgb(color) for color in SEGMENT_COLORS], np.float32) / 255
    masks = to_array(masks)
    ranks = (-masks.sum((2, 3))).argsort(1, kind="stable").argsort(1)
    owners = masks.argmax(1)  # (B, H, W)
    colors = palette[ranks % len(palette)][np.arange(len(masks))[:, None, None], owners]  # (B, H, W, 3)
    shares = np.sort(np.pad(masks, ((0, 0), (1, 0), (0, 0), (0, 0))), 1)  # a slot more, for K = 1
    lead = shares[:, -1:] - shares[:, -2:-1]
    colored = lead * _channels_first(colors) + (1 - lead) * 0.15
    return 0.75 * colored + 0.25 * to_array(image).mean(1, keepdims=True)


def draw(truth: "Images", reconstruction: "Images", masks: "Images") -> Image.Image:
    """One row per image: the truth, the image through the slots, and the slots' masks as coloured `segments`.

    Args:
        truth, reconstruction: (B, 3, H, W) in [0, 1].
        masks: (B, K, H, W) in [0, 1].
    """
    return compare(truth, [Group("", (), "black", reconstruction, masks)])


def strip(truth: "Images", reconstruction: "Images", masks: "Images") -> bytes:
    """What `draw` shows, small: a WebP file of the truths, the images through the slots, and the `segments`, one row
    each, in the images' own size."""
    rows = [to_bytes(images) for images in (truth, reconstruction, segments(truth, masks))]
    pixels = np.concatenate([np.concatenate([*_channels_last(images)], 1) for images in rows])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", quality=90)
    return file.getvalue()


def compare(truth: "Images", groups: Sequence[Group]) -> Image.Image:
    """The same images (B, 3, H, W) through several models: one row per image with the truth, and for each model the
    image through its slots and its `segments`, under the model's title and lines."""
    factor = -(-LARGE_TILE // min(truth.shape[-2:]))
    columns = [("truth", truth)]
    for group in groups:
        columns += [("through slots", group.reconstruction), ("slot masks", segments(truth, group.masks))]
    pixels = [enlarged(images, factor) for _, images in columns]
    rows, height, width, _ = pixels[0].shape
    lefts = [GAP + i * (width + GAP) + (i + 1) // 2 * (GROUP_GAP - GAP) for i in range(len(columns))]
    named = any(group.title for group in groups)
    top = (42 + 18 * max(len(group.lines) for group in groups) if named else 0) + 26
    canvas = Image.new("RGB", (lefts[-1] + width + GAP, top + rows * (height + GAP)), "white")
    pen = ImageDraw.Draw(canvas)

    def write(text: str, left: int, y: int, wide: int, size: int, color: str = "#333333") -> None:
        length = pen.textlength(text, ImageFont.load_default(size=size))
        font = ImageFont.load_default(size=size * min(1, wide / max(length, 1)))  # what is too long is written smaller
        pen.text((left + wide / 2, y), text, fill=color, font=font, anchor="mm")

    for group, left in zip(groups, lefts[1::2]):
        write(group.title, left, 18, 2 * width + GAP, 24, group.color)
        for i, line in enumerate(group.lines):
            write(line, left, 44 + 18 * i, 2 * width + GAP, 15)
    for (title, _), of_column, left in zip(columns, pixels, lefts):
        write(title, left, top - 14, width, 15)
        for row in range(rows):
            canvas.paste(Image.fromarray(of_column[row]), (left, top + row * (height + GAP)))
    return canvas


def to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def panels_npz(truth: "Images", reconstruction: "Images", masks: "Images", ceiling: "Images | None") -> bytes:
    """`truth`, `reconstruction` and, if there is one, `dvae`: uint8 (B, H, W, 3); `masks`: uint8 (B, K, H, W).

    Arguments as of `panel_picture`.
    """
    images = {"truth": truth, "reconstruction": reconstruction, "dvae": ceiling}
    arrays = {name: _channels_last(to_bytes(of)) for name, of in images.items() if of is not None}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays, masks=to_bytes(masks))
    return file.getvalue()


def read_panels(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`truth`, `reconstruction` and `masks` of a file that `panels_npz` made, as `draw` takes them."""
    with np.load(path) as file:
        images = (_channels_first(file[name]) for name in ("truth", "reconstruction"))
        truth, reconstruction, masks = (array.astype(np.float32) / 255 for array in (*images, file["masks"]))
    return truth, reconstruction, masks


def to_array(images: "Images") -> np.ndarray:
    """The same as float32, in the memory of the CPU."""
    return images if isinstance(images, np.ndarray) else images.detach().float().cpu().numpy()


def to_bytes(images: "Images") -> np.ndarray:
    """[0, 1] as 0 to 255, rounded, so that images made from bytes become the same bytes again."""
    return (to_array(images).clip(0, 1) * 255).round().astype(np.uint8)


def _channels_last(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -3, -1)


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -1, -3)


def enlarged(images: "Images", factor: int) -> np.ndarray:
    """(…, 3, H, W) in [0, 1] as bytes (…, factor · H, factor · W, 3)."""
    return np.ascontiguousarray(_channels_last(to_bytes(images)).repeat(factor, -3).repeat(factor, -2))
