"""The metrics of an evaluation: their keys in its JSON, and what tables call them. Nothing heavy is imported here."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A metric's name, and which way is better."""

    name: str
    higher_is_better: bool = False


LIKENESS = {
    "mse": Metric("MSE"),
    "mse_per_value": Metric("MSE per value"),
    "psnr": Metric("PSNR (dB)", True),
    "ssim": Metric("SSIM", True),
    "fid": Metric("FID"),
    "kid": Metric("KID"),
}
"""Of images beside the truth: the ceiling has these, too."""

METRICS = LIKENESS | {
    "cross_entropy": Metric("cross-entropy"),
    "fg_ari": Metric("FG-ARI", True),
    "ari": Metric("ARI", True),
    "mbo_object": Metric("mBO per object", True),
    "mbo_image": Metric("mBO per image", True),
}
