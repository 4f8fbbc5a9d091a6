"""How close images are to the true ones: squared error, PSNR and SSIM of each image."""

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

SMALLEST_SSIM = 11
"""Side of SSIM's Gaussian window; smaller images have no SSIM."""


def likeness(reconstruction: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """How close images (B, C, H, W) in [0, 1] are to the true ones; each value is (B,).

    - `mse`: squared error summed over C, H, W;
    - `psnr`: in dB, from the mean squared error per value;
    - `ssim`: mean over all pixels, with a Gaussian window of σ = 1.5 (Wang et al. 2004) and reflected borders.
    """
    squared = (reconstruction.double() - truth.double()).square().flatten(1)
    values = {"mse": squared.sum(1), "psnr": -10 * squared.mean(1).log10()}
    if min(truth.shape[-2:]) >= SMALLEST_SSIM:
        values["ssim"] = structural_similarity_index_measure(reconstruction, truth, data_range=1.0, reduction="none")
    return values
