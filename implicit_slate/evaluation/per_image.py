"""What is measured of each image, and a metric that keeps it in the order of the images."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.utilities import dim_zero_cat

from implicit_slate.metrics import adjusted_rand_index, best_overlaps, segments

SMALLEST_SSIM = 11
"""Side of SSIM's Gaussian window: smaller images have no SSIM."""


def likeness(reconstruction: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """How close images (B, C, H, W) in [0, 1] come to the true ones, each (B,).

    `mse`: squared error summed over C, H, W. `psnr`: in dB, of the mean squared error per value. `ssim`: with a
    Gaussian window of σ = 1.5 (Wang et al. 2004).
    """
    squared = (reconstruction.double() - truth.double()).square().flatten(1)
    values = {"mse": squared.sum(1), "psnr": -10 * squared.mean(1).log10()}
    if min(truth.shape[-2:]) >= SMALLEST_SSIM:
        values["ssim"] = structural_similarity_index_measure(reconstruction, truth, data_range=1.0, reduction="none")
    return values


def segmentation(masks: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """How well slots' masks (B, K, H, W) agree with a label map (B, H, W), 0 = background; each (B,).

    `overlap` is the sum of the best IoUs over the image's `objects`.
    """
    predicted = segments(masks)
    overlap, objects = best_overlaps(truth, predicted)
    return {
        "fg_ari": adjusted_rand_index(truth, predicted, foreground_only=True),
        "ari": adjusted_rand_index(truth, predicted, foreground_only=False),
        "overlap": overlap,
        "objects": objects,
    }


class PerImage(Metric):
    """Values of every image in the order of the images, whichever batches and processes they came from.

    An image that comes twice counts once: samplers pad the share of a process with images of another.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("index", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, index: Tensor, values: Tensor) -> None:
        """The images' places (B,) in 0 … N - 1, and their values (B, D)."""
        self.index.append(index)
        self.values.append(values)

    def compute(self) -> Tensor:
        """(N, D)"""
        index, values = dim_zero_cat(self.index), dim_zero_cat(self.values)
        ordered = torch.empty_like(values[: index.max() + 1])
        ordered[index] = values
        return ordered
