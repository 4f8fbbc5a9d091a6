"""The numbers of an evaluation, from what was measured of each image."""

import csv
import io
import math
import statistics
from typing import Any

import numpy as np
import torch

from implicit_slate.evaluation.job import CEILING, Job
from implicit_slate.evaluation.measures import COLUMNS
from implicit_slate.evaluation.records import Records
from implicit_slate.metrics.fid import fid, kid
from implicit_slate.scores import LIKENESS, METRICS


def summarise(job: Job, records: Records, truth: np.ndarray | None, values_per_image: int) -> dict[str, Any]:
    """`metrics`: of each the mean over draws, their standard deviation and each draw's value. `ceiling`: metrics of the
    model without its slots, or None. A number that is not there or not finite is None.

    Args:
        truth: Inception's features of the true images (N, 2048).
        values_per_image: C · H · W.
    """
    true_features = None if truth is None else torch.from_numpy(truth)

    def of_pass(number: int) -> dict[str, float]:
        means = _means(records.values(number), values_per_image)
        if truth is not None:
            features = torch.from_numpy(np.array(records.features(number)))
            if "fid" in job.metrics:
                means["fid"] = fid(true_features, features)
            if "kid" in job.metrics:
                means["kid"] = kid(true_features, features, seed=job.seed)[0]
        return means

    draws = [of_pass(number) for number in range(job.draws)]
    ceiling = of_pass(CEILING) if CEILING in job.passes else None
    return {
        "metrics": {name: _over_draws([draw.get(name) for draw in draws]) for name in METRICS},
        "ceiling": ceiling and {name: _finite(ceiling.get(name)) for name in LIKENESS},
    }


def to_csv(job: Job, records: Records) -> str:
    """The measurements of every image in every pass, a row each; empty where there is nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [name for name in COLUMNS if any(np.isfinite(records.values(n)[name]).any() for n in _passes(job))]
    writer.writerow(["image", "draw", *columns])
    for number in _passes(job):
        values = records.values(number)
        for image, row in enumerate(zip(*(values[name] for name in columns))):
            cells = [repr(float(value)) if math.isfinite(value) else "" for value in row]
            writer.writerow([image, "ceiling" if number == CEILING else number, *cells])
    return text.getvalue()


def _passes(job: Job) -> list[int]:
    return [number for number in job.passes if number >= CEILING]


def _means(values: dict[str, np.ndarray], values_per_image: int) -> dict[str, float]:
    """Over images, of those that have a value."""
    means = {name: float(of[~np.isnan(of)].mean()) for name, of in values.items() if not np.isnan(of).all()}
    overlap, objects = values["overlap"], values["objects"]
    if (there := objects > 0).any():  # False where it is NaN
        means["mbo_object"] = float(overlap[there].sum() / objects[there].sum())
        means["mbo_image"] = float((overlap[there] / objects[there]).mean())
    if "mse" in means:
        means["mse_per_value"] = means["mse"] / values_per_image
    return means


def _over_draws(values: list[float | None]) -> dict[str, Any] | None:
    if any(value is None for value in values):
        return None
    draws = [_finite(value) for value in values]
    if None in draws:
        return {"mean": None, "std": None, "draws": draws}
    return {
        "mean": statistics.fmean(draws), "std": statistics.stdev(draws) if len(draws) > 1 else None, "draws": draws
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
