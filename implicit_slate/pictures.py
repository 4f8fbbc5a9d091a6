"""Pictures of images in rows and columns, also for notebooks. Images are tensors or arrays; PyTorch is not needed.

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
"""Images are enlarged by an integer factor to sides of at least this many pixels, so that titles fit above them."""
GAP, TITLE_HEIGHT = 4, 22

LARGE_TILE, GROUP_GAP = 160, 28
"""For `compare`, in pixels: the smallest side of an image, so that titles fit above it; the space between groups."""

SEGMENT_COLORS = (
    "#8C99AD", "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2",
    "#DDDDDD", "#6A3D9A", "#882255", "#999933",
)  # fmt: skip
"""One colour per slot of an image: a muted one for the slot with the largest mask, usually the background, then Okabe
and Ito's palette, which colour-blind readers can tell apart, then four more. They repeat after twelve slots."""


class Group(NamedTuple):
    """A model's output for some images, for `compare`."""

    title: str
    lines: Sequence[str]
    """Smaller lines under the title."""
    color: str
    """Colour of the title."""
    reconstruction: "Images"
    """(B, 3, H, W) in [0, 1]."""
    masks: "Images"
    """(B, K, H, W) in [0, 1]."""


def panel_columns(
    truth: "Images", reconstruction: "Images", masks: "Images", ceiling: "Images | None"
) -> "dict[str, Images]":
    """The columns of a panel by title, each (B, 3, H, W): truth, dVAE (if there is one), reconstruction through the
    slots, and for each slot the image where the slot attends, fading to white elsewhere.

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
    """Images (rows, columns, 3, H, W) in [0, 1] as one picture, with a title above each column."""
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


def colored_segments(image: "Images", masks: "Images") -> np.ndarray:
    """The slots' masks as one picture, over the dimmed greyscale image. Each pixel has the colour of the slot with its
    largest share, the stronger the more this share exceeds the second largest; it is dark where slots share a pixel.

    In each image colours are assigned to slots by the size of their masks, the largest first.

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
    shares = np.sort(np.pad(masks, ((0, 0), (1, 0), (0, 0), (0, 0))), 1)  # one more slot, in case K = 1
    lead = shares[:, -1:] - shares[:, -2:-1]
    colored = lead * _channels_first(colors) + (1 - lead) * 0.15
    return 0.75 * colored + 0.25 * to_array(image).mean(1, keepdims=True)


def draw(truth: "Images", reconstruction: "Images", masks: "Images") -> Image.Image:
    """One row per image: the truth, the reconstruction through the slots, and the slots' masks as `colored_segments`.

    Args:
        truth, reconstruction: (B, 3, H, W) in [0, 1].
        masks: (B, K, H, W) in [0, 1].
    """
    return compare(truth, [Group("", (), "black", reconstruction, masks)])


def strip(truth: "Images", reconstruction: "Images", masks: "Images") -> bytes:
    """A small version of `draw`: the content of a WebP file with one row each of truths, reconstructions and
    `colored_segments`, in the images' own size."""
    rows = [to_bytes(images) for images in (truth, reconstruction, colored_segments(truth, masks))]
    pixels = np.concatenate([np.concatenate([*_channels_last(images)], 1) for images in rows])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", quality=90)
    return file.getvalue()


def compare(truth: "Images", groups: Sequence[Group]) -> Image.Image:
    """The same images (B, 3, H, W) by several models: one row per image, with the truth, and for each model the
    reconstruction and the `colored_segments`, under the model's title and lines."""
    factor = -(-LARGE_TILE // min(truth.shape[-2:]))
    columns = [("truth", truth)]
    for group in groups:
        columns += [("through slots", group.reconstruction), ("slot masks", colored_segments(truth, group.masks))]
    pixels = [enlarged(images, factor) for _, images in columns]
    rows, height, width, _ = pixels[0].shape
    lefts = [GAP + i * (width + GAP) + (i + 1) // 2 * (GROUP_GAP - GAP) for i in range(len(columns))]
    named = any(group.title for group in groups)
    top = (42 + 18 * max(len(group.lines) for group in groups) if named else 0) + 26
    canvas = Image.new("RGB", (lefts[-1] + width + GAP, top + rows * (height + GAP)), "white")
    pen = ImageDraw.Draw(canvas)

    def write(text: str, left: int, y: int, wide: int, size: int, color: str = "#333333") -> None:
        length = pen.textlength(text, ImageFont.load_default(size=size))
        font = ImageFont.load_default(size=size * min(1, wide / max(length, 1)))  # smaller if the text is too long
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
    """The content of an NPZ file with `truth`, `reconstruction` and, if there is one, `dvae`: uint8 (B, H, W, 3); and
    `masks`: uint8 (B, K, H, W). For the arguments see `panel_columns`."""
    images = {"truth": truth, "reconstruction": reconstruction, "dvae": ceiling}
    arrays = {name: _channels_last(to_bytes(of)) for name, of in images.items() if of is not None}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays, masks=to_bytes(masks))
    return file.getvalue()


def read_panels(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`truth`, `reconstruction` and `masks` from a file of `panels_npz`, in the form of `draw`'s arguments."""
    with np.load(path) as file:
        images = (_channels_first(file[name]) for name in ("truth", "reconstruction"))
        truth, reconstruction, masks = (array.astype(np.float32) / 255 for array in (*images, file["masks"]))
    return truth, reconstruction, masks


def to_array(images: "Images") -> np.ndarray:
    """The images as a float32 array."""
    return images if isinstance(images, np.ndarray) else images.detach().float().cpu().numpy()


def to_bytes(images: "Images") -> np.ndarray:
    """Images in [0, 1] as bytes, rounded, so that images that came from bytes become the same bytes again."""
    return (to_array(images).clip(0, 1) * 255).round().astype(np.uint8)


def _channels_last(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -3, -1)


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -1, -3)


def enlarged(images: "Images", factor: int) -> np.ndarray:
    """Images (…, 3, H, W) in [0, 1] -> bytes (…, factor · H, factor · W, 3)."""
    return np.ascontiguousarray(_channels_last(to_bytes(images)).repeat(factor, -3).repeat(factor, -2))
