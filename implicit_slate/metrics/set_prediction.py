"""Average precision of predicted objects (Locatello et al. 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from implicit_slate.models.property_predictor import ATTRIBUTE_SIZES

WORLD = 6.0
"""Length in the scene of a coordinate's range [0, 1]: CLEVR's objects are between -3 and 3."""
THRESHOLDS = (math.inf, 1.0, 0.5, 0.25, 0.125)
"""Distances in the scene below which a prediction can be correct."""


class PropertyAveragePrecision(Metric):
    """Average precision of predicted objects, one value for each distance: `ap_inf`, `ap_1`, `ap_0.5`, …

    This follows the authors' code. Each slot of each image is a detection. Its object is the nearest true object of the
    image that agrees with it in every attribute (the largest value of each one-hot vector). A detection is correct if
    it has such an object, which is nearer than the distance (Euclidean, in the scene's units), and if no detection of
    the same object with a higher confidence was correct. Detections of all images are sorted by falling confidence.
    Precision is made non-increasing in recall, from the right, and average precision is the area under it; recall that
    is never reached adds nothing. It is 1 if all objects are found, each by one slot with a higher confidence than all
    wrong ones, and NaN if there are no objects at all.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")  # (n,), one value per detection
        self.add_state("right", [], dist_reduce_fx="cat")  # (n, len(THRESHOLDS)), bool
        self.add_state("num_objects", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, properties: Tensor) -> None:
        """Predicted objects (B, K, P) and the true ones (B, M, P)."""
        # Which detections are correct depends only on the order within an image, so it can be decided here.
        order = predictions[..., -1].argsort(dim=1, descending=True, stable=True)
        predictions = predictions.gather(1, order.unsqueeze(2).expand_as(predictions)).float()
        offset = predictions[:, :, None, :3] - properties[:, None, :, :3]
        distance = WORLD * offset.norm(dim=-1)  # (B, K, M)
        agree = (_categories(predictions).unsqueeze(2) == _categories(properties).unsqueeze(1)).all(-1)
        real = properties[..., -1] > 0.5
        distance = distance.masked_fill(~agree | ~real.unsqueeze(1), math.inf)
        nearest = F.one_hot(distance.argmin(2), distance.shape[2]).bool()  # (B, K, M)
        right = []
        for threshold in THRESHOLDS:
            found = nearest & (distance < threshold)
            right.append((found & (found.cumsum(1) == 1)).any(2))
        self.confidence.append(predictions[..., -1].detach().flatten())
        self.right.append(torch.stack(right, -1).flatten(0, 1))
        self.num_objects += real.sum()

    def compute(self) -> dict[str, Tensor]:
        order = dim_zero_cat(self.confidence).argsort(descending=True, stable=True)
        right = dim_zero_cat(self.right)[order]
        true_positives = right.cumsum(0)
        ranks = torch.arange(1, len(right) + 1, device=right.device)
        precision = (true_positives / ranks.unsqueeze(1)).flip(0).cummax(0).values.flip(0)
        # At every correct detection recall rises by 1 / num_objects.
        area = (precision * right).sum(0) / self.num_objects
        return {f"ap_{threshold:g}": value for threshold, value in zip(THRESHOLDS, area)}


def _categories(properties: Tensor) -> Tensor:
    """(…, P) -> (…, attributes): the index of the largest value of each one-hot vector."""
    vectors = properties[..., 3:-1].split(ATTRIBUTE_SIZES, dim=-1)
    return torch.stack([vector.argmax(-1) for vector in vectors], dim=-1)
