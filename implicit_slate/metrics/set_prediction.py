"""How well the objects of a scene are predicted, as in Locatello et al. (2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from implicit_slate.models.property_predictor import ATTRIBUTE_SIZES

WORLD = 6.0
"""Length in the scene of a coordinate's range [0, 1]: CLEVR's objects stand between -3 and 3."""
THRESHOLDS = (math.inf, 1.0, 0.5, 0.25, 0.125)
"""Distances in the scene up to which a prediction may be right."""


class PropertyAveragePrecision(Metric):
    """Average precision of predicted objects, one value for each of some distances: `ap_inf`, `ap_1`, `ap_0.5`, …

    As in the authors' code. Each slot of each image is a detection. Its object is the nearest of those true
    objects of the image that agree with it in every attribute (the largest value of each one-hot vector). It is right
    if it has such an object, less than the distance away (Euclidean, in the scene's units), and no detection of the
    same object before it was right. "Before" is the order of falling confidence over the whole set. Precision is made
    non-increasing in recall from the right, and average precision is the area under it; recall that is never
    reached adds nothing. It is 1 if all objects are found, each by one slot that comes before all wrong ones, and NaN
    if there is no object at all.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, thresholds: tuple[float, ...] = THRESHOLDS):
        super().__init__()
        self.thresholds = thresholds
        self.add_state("confidence", [], dist_reduce_fx="cat")  # of each detection
        self.add_state("right", [], dist_reduce_fx="cat")  # (n, thresholds), bool
        self.add_state("num_objects", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, properties: Tensor) -> None:
        """Predicted objects (B, K, P) and the true ones (B, M, P)."""
        # Among detections of one image, and only of those, the order decides which is right: it can be settled here.
        order = predictions[..., -1].argsort(dim=1, descending=True, stable=True)
        predictions = predictions.gather(1, order.unsqueeze(2).expand_as(predictions)).float()
        offset = predictions[:, :, None, :3] - properties[:, None, :, :3]
        distance = WORLD * offset.norm(dim=-1)  # (B, K, M)
        agree = (_categories(predictions).unsqueeze(2) == _categories(properties).unsqueeze(1)).all(-1)
        real = properties[..., -1] > 0.5
        distance = distance.masked_fill(~agree | ~real.unsqueeze(1), math.inf)
        nearest = F.one_hot(distance.argmin(2), distance.shape[2]).bool()  # (B, K, M)
        right = []
        for threshold in self.thresholds:
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
        # Recall rises by one object's share at every detection that is right.
        area = (precision * right).sum(0) / self.num_objects
        return {f"ap_{threshold:g}": value for threshold, value in zip(self.thresholds, area)}


def _categories(properties: Tensor) -> Tensor:
    """(…, P) -> (…, attributes): the index of the largest value of each one-hot vector."""
    vectors = properties[..., 3:-1].split(ATTRIBUTE_SIZES, dim=-1)
    return torch.stack([vector.argmax(-1) for vector in vectors], dim=-1)
