"""Compares two folders of rendered scenes, files of the same name with each other:

    python -m data_modules.rendering.compare FOLDER REFERENCE [--sheet SHEET.png]

prints the mean intersection over union of the masks, object by object, and the mean PSNR of the images, which must be
of one size. The sheet has rows of FOLDER, REFERENCE, and half the difference plus grey.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from data_modules.image_files import open_image, open_mask
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically

SHEET_COLUMNS, SHEET_ROWS = 8, 3


class Comparison(NamedTuple):
    """Means over objects (`mask_iou`) and over images (`psnr`, in dB), and the worst of each."""

    mask_iou: float
    mask_iou_min: float
    psnr: float
    psnr_min: float
    num_scenes: int


def compare(folder: Path, reference: Path) -> tuple[Comparison, list[tuple[np.ndarray, np.ndarray]]]:
    """The comparison, and the pairs of images, uint8 (S, S, 3), that it was made from."""
    names = sorted(path.name for path in (folder / "images").glob("*.png"))
    names = [name for name in names if (reference / "images" / name).exists()]
    if not names:
        raise UserError(f"{folder}: expected images/*.png of the same names as in {reference}, found none")
    ious, psnrs, pairs = [], [], []
    for name in names:
        ours, our_mask = _read(folder, name)
        theirs, their_mask = _read(reference, name)
        if ours.shape != theirs.shape:
            raise UserError(f"{folder / 'images' / name}: {len(ours)} pixels wide, but {len(theirs)} in {reference}")
        pairs.append((ours, theirs))
        psnrs.append(psnr(ours, theirs))
        ious += mask_ious(our_mask, their_mask)
    return Comparison(np.mean(ious), min(ious), np.mean(psnrs), min(psnrs), len(names)), pairs


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images."""
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def mask_ious(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Intersection over union of each object that is in either mask; 0 is background."""
    labels = sorted({*np.unique(a), *np.unique(b)} - {0})
    return [float(((a == label) & (b == label)).sum() / ((a == label) | (b == label)).sum()) for label in labels]


def contact_sheet(rows: list[list[np.ndarray]], scale: int, file_format: Literal["PNG", "JPEG"] = "PNG") -> bytes:
    """A picture of uint8 (S, S, 3) images in rows of equal length, each pixel `scale` pixels wide, at least one."""
    scale = max(1, scale)
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    buffer = io.BytesIO()
    Image.fromarray(sheet.repeat(scale, axis=0).repeat(scale, axis=1)).save(
        buffer, file_format, optimize=True, quality=88
    )
    return buffer.getvalue()


def _read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    image = open_image(folder / "images" / name, folder / "images" / name)
    return np.asarray(image), np.asarray(open_mask(folder / "masks" / name, folder / "masks" / name, image.size))


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (128 + (a.astype(int) - b) // 2).clip(0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_modules.rendering.compare", description="Compare renderings.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet to this PNG file")
    args = parser.parse_args()
    result, pairs = compare(args.folder, args.reference)
    print(
        f"{result.num_scenes} scenes: mask IoU {result.mask_iou:.4f} (worst object {result.mask_iou_min:.3f}), "
        f"PSNR {result.psnr:.2f} dB (worst {result.psnr_min:.2f})"
    )
    if args.sheet:
        rows = []
        for start in range(0, min(len(pairs), SHEET_COLUMNS * SHEET_ROWS), SHEET_COLUMNS):
            some = pairs[start : start + SHEET_COLUMNS]
            some = some + [some[-1]] * (SHEET_COLUMNS - len(some))
            rows += [[a for a, _ in some], [b for _, b in some], [_difference(a, b) for a, b in some]]
        write_atomically(args.sheet, contact_sheet(rows, scale=128 // pairs[0][0].shape[0]))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
