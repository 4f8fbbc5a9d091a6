"""How well segments agree with true objects: ARI, FG-ARI and mBO of label maps (docs/method.md, Metrics).

Label maps are integers of shape (B, H, W) or (B, L); labels are any non-negative numbers. In the truth 0 is the
background; a predicted 0 is a segment like the others. Sums are in float64, exact for counts of pixels and their pairs.
"""

import torch
from torch import Tensor

SMALL = 256
"""Labels below this are used as indices of a table; larger ones are renumbered first, which needs a sort."""


def adjusted_rand_index(truth: Tensor, predicted: Tensor, foreground_only: bool) -> Tensor:
    """(B,) adjusted Rand index of two partitions of the pixels: 1 if they are equal, 0 on average by chance.

    From Hubert and Arabie 1985. If the formula is 0/0, because both partitions have one segment or both have only
    single pixels, the index is 1, as in scikit-learn.

    Args:
        truth: label maps, 0 = background.
        predicted: label maps of the same shape.
        foreground_only: leave out the pixels whose truth is 0 (FG-ARI). Images without other pixels get NaN: skip them.

    Raises:
        ValueError: different shapes, or a negative label.
    """
    # torchmetrics' version works on one pair of maps at a time, and takes 25 times as long.
    table = _contingency(truth, predicted)
    if foreground_only:
        table = table[:, 1:]
    together = _pairs(table).sum((1, 2))
    in_truth, in_predicted = _pairs(table.sum(2)).sum(1), _pairs(table.sum(1)).sum(1)
    pixels = table.sum((1, 2))
    expected = in_truth * in_predicted / _pairs(pixels)
    score = (together - expected) / ((in_truth + in_predicted) / 2 - expected)
    # Equal partitions; these include the cases of 0/0.
    score = score.masked_fill((together == in_truth) & (together == in_predicted), 1.0)
    return score.masked_fill(pixels == 0, torch.nan)


def best_overlaps(truth: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """The largest intersection over union (IoU) of each true object with any segment, summed over an image's objects;
    and the number of objects.

    The mean best overlap per object is `sums.sum() / counts.sum()`; per image it is the mean of `sums / counts` over
    the images that have objects. An object is a label above 0 that occurs. A segment may be the best one for several
    objects, and its background pixels count in the union.

    Args:
        truth: label maps, 0 = background.
        predicted: label maps of the same shape.

    Returns:
        sums (B,) and counts (B,), float64.

    Raises:
        ValueError: different shapes, or a negative label.
    """
    table = _contingency(truth, predicted)
    objects = table.sum(2)
    union = objects[:, :, None] + table.sum(1)[:, None] - table
    best = (table / union.clamp_min(1)).amax(2)[:, 1:]
    return best.sum(1), (objects[:, 1:] > 0).sum(1).double()


def agreement(truth: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """FG-ARI, ARI and best overlaps of label maps (B, H, W); each value is (B,).

    `overlap` is the sum of the best IoUs over an image's objects, whose number is `objects`.
    """
    overlap, objects = best_overlaps(truth, predicted)
    return {
        "fg_ari": adjusted_rand_index(truth, predicted, foreground_only=True),
        "ari": adjusted_rand_index(truth, predicted, foreground_only=False),
        "overlap": overlap,
        "objects": objects,
    }


def bound(truth: Tensor, side: int) -> dict[str, Tensor]:
    """The best values of `agreement` (`fg_ari`, `overlap`, `objects`) for label maps that are constant in each cell of
    a grid.

    `overlap` is an upper bound: each object's IoU with the cells that fit it best, even if two objects need the same
    cell. `fg_ari` is no upper bound, but that of the map in which each cell has the object that covers most of it,
    however much background there is. A cell-by-cell search from there gained 0.002 on mirror scenes of 8 × 8 cells, and
    nothing on sprites; in crowded images with few cells it gains more, because the index is not a sum over cells.

    Args:
        truth: label maps (B, H, W), 0 = background.
        side: side of the grid; H = W is a multiple of it.
    """
    size = truth.shape[-1]
    line = torch.arange(size, device=truth.device) // (size // side)
    cells = (line[:, None] * side + line).expand_as(truth)
    objects = _contingency(truth, cells)  # (B, T, cells), the background first
    objects[:, 0] = 0
    fullest = objects.max(1).indices.gather(1, cells.flatten(1)).view_as(truth)
    inside = objects.sort(2, descending=True).values.cumsum(2)  # an object's pixels in the 1, 2, … cells it fills most
    area = (size // side) ** 2 * torch.arange(1, side**2 + 1, device=truth.device)
    return {
        "fg_ari": adjusted_rand_index(truth, fullest, foreground_only=True),
        "overlap": (inside / (objects.sum(2, keepdim=True) + area - inside)).amax(2).sum(1),
        "objects": (objects.sum(2) > 0).sum(1).double(),
    }


def segments(masks: Tensor) -> Tensor:
    """Masks (B, K, H, W) -> label maps (B, H, W): the first slot with the largest share of a pixel."""
    return masks.max(1).indices  # the same as argmax, but four times as fast on a CPU


def _contingency(truth: Tensor, predicted: Tensor) -> Tensor:
    """(B, T, P) float64: number of pixels with true label t and predicted label p; row 0 is the background."""
    if truth.shape != predicted.shape:
        raise ValueError(f"truth {tuple(truth.shape)} and predicted {tuple(predicted.shape)} differ in shape")
    rows, num_rows = _small_labels(truth, "truth")
    columns, num_columns = _small_labels(predicted, "predicted")
    images = torch.arange(len(truth), device=truth.device)[:, None]
    cells = (images * num_rows + rows) * num_columns + columns
    counts = torch.bincount(cells.flatten(), minlength=len(truth) * num_rows * num_columns)
    return counts.view(len(truth), num_rows, num_columns).double()


def _small_labels(labels: Tensor, name: str) -> tuple[Tensor, int]:
    """Labels (B, L) as small numbers from 0 on, where 0 stays 0; and an upper limit of these numbers."""
    labels = labels.flatten(1)
    smallest, largest = (int(end) for end in labels.aminmax())
    if smallest < 0:
        raise ValueError(f"{name}: label {smallest} is negative")
    if largest < SMALL:
        return labels, largest + 1
    found, index = torch.cat([labels.new_zeros(1), labels.flatten()]).unique(return_inverse=True)
    return index[1:].view_as(labels), len(found)


def _pairs(counts: Tensor) -> Tensor:
    return counts * (counts - 1) / 2
