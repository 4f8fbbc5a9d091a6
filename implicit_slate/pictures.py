"""Pictures of images in rows and columns."""

import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 96
"""Images are enlarged by a whole factor to sides of at least this many pixels, so that titles fit above them."""
GAP, TITLE_HEIGHT = 4, 22


def panel_columns(truth: Tensor, reconstruction: Tensor, masks: Tensor, ceiling: Tensor | None) -> dict[str, Tensor]:
    """The columns of a panel by their titles, each (B, 3, H, W): truth, dVAE (if there is one), through the slots, and
    for each slot the image where the slot looks, fading to white where others do.

    Args:
        truth, reconstruction, ceiling: (B, 3, H, W) in [0, 1]; see `models.SlotModel`.
        masks: (B, K, H, W) in [0, 1].
    """
    columns = {"truth": truth} | ({} if ceiling is None else {"dVAE": ceiling}) | {"through slots": reconstruction}
    for k, mask in enumerate(masks.unsqueeze(2).unbind(1)):
        columns[f"slot {k + 1}"] = truth * mask + 1 - mask
    return columns


def panel_picture(truth: Tensor, reconstruction: Tensor, masks: Tensor, ceiling: Tensor | None) -> Image.Image:
    """One row per image, with the columns of `panel_columns` and their titles."""
    columns = panel_columns(truth, reconstruction, masks, ceiling)
    return tile(torch.stack(list(columns.values()), 1), list(columns))


def tile(images: Tensor, titles: Sequence[str]) -> Image.Image:
    """(rows, columns, 3, H, W) in [0, 1] as one picture, with a title above each column."""
    factor = -(-TILE // min(images.shape[-2:]))
    images = images.float().clamp(0, 1).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    rows, columns, _, height, width = images.shape
    pixels = (images * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
    canvas = Image.new("RGB", (columns * (width + GAP) + GAP, TITLE_HEIGHT + rows * (height + GAP)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for column, title in enumerate(titles):
        left = GAP + column * (width + GAP)
        draw.text((left + width / 2, TITLE_HEIGHT / 2), title, fill="black", font=font, anchor="mm")
        for row in range(rows):
            canvas.paste(Image.fromarray(pixels[row, column]), (left, TITLE_HEIGHT + row * (height + GAP)))
    return canvas


def to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
