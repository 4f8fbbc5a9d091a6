"""What is measured of each image (METHOD §6). All numbers are in float64, NaN where there is nothing to measure."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from implicit_slate.metrics import adjusted_rand_index, best_overlaps, segments

COLUMNS = ("mse", "psnr", "ssim", "cross_entropy", "fg_ari", "ari", "overlap", "objects")
"""A number an image each; `overlap` is the sum of best IoUs over its `objects`."""

SMALLEST_SSIM = 11
"""Side of SSIM's Gaussian window: smaller images have none."""


def likeness(reconstruction: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """How near images (B, C, H, W) in [0, 1] come to the truth, each (B,).

    `mse`: squared error summed over C, H, W. `psnr`: in dB, of the mean squared error a value. `ssim`: with a Gaussian
    window of σ = 1.5 (Wang et al. 2004).
    """
    squared = (reconstruction.double() - truth.double()).square().flatten(1)
    values = {"mse": squared.sum(1), "psnr": -10 * squared.mean(1).log10()}
    if min(truth.shape[-2:]) >= SMALLEST_SSIM:
        values["ssim"] = structural_similarity_index_measure(reconstruction, truth, data_range=1.0, reduction="none")
    return values


def segmentation(masks: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """How well slots' masks (B, K, H, W) agree with a label map (B, H, W), 0 = background; each (B,)."""
    predicted = segments(masks)
    overlap, objects = best_overlaps(truth, predicted)
    return {
        "fg_ari": adjusted_rand_index(truth, predicted, foreground_only=True),
        "ari": adjusted_rand_index(truth, predicted, foreground_only=False),
        "overlap": overlap,
        "objects": objects,
    }


def as_columns(values: dict[str, Tensor], count: int) -> Tensor:
    """(count, len(COLUMNS)) float64 on the CPU, NaN in the columns that are not there."""
    missing = torch.full((count,), torch.nan, dtype=torch.float64)
    return torch.stack([values[name].double().cpu() if name in values else missing for name in COLUMNS], 1)
