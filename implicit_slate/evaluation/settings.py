"""How to evaluate. Nothing heavy is imported here, so that bad usage is answered at once."""

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("test", "val", "train")
METRICS = {
    "reconstruction": "MSE, PSNR and SSIM of the image through the slots",
    "cross_entropy": "of the image's own tokens, predicted from the slots",
    "segmentation": "FG-ARI, ARI and mBO of the slots' masks, where the data has masks",
    "fid": "Fréchet Inception distance between the images and their reconstructions",
    "kid": "kernel Inception distance, which suits few images better (only if asked for)",
}
"""What can be asked for, by groups."""
BY_DEFAULT = ("reconstruction", "cross_entropy", "segmentation", "fid")


@dataclass(frozen=True)
class Settings:
    """How to evaluate; see `implicit-slate evaluate --help`."""

    split: str
    images: int | None
    draws: int
    metrics: tuple[str, ...] | None
    batch_size: int
    weights: Path | None
    seed: int
