"""The numbers of an evaluation, and tables of them."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from implicit_slate.evaluation.module import TRUTH, Evaluation
from implicit_slate.measures import EVALUATED, REFERENCES, finite
from implicit_slate.metrics.fid import fid, kid
from implicit_slate.run_folder import run_of


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers of a finished evaluation; values that were not measured, or are not finite, are None.

    Returns:
        Under `metrics`, for each measure, its `mean` and `std` over draws, and `draws`, the value of each draw. Under
        each of `REFERENCES` the measures that it has; None if there is no such reference.
    """
    passes = _means_over_images(evaluation).reindex(columns=list(EVALUATED))
    draws = passes.drop(index=list(REFERENCES), errors="ignore")
    return {"metrics": {tag: _over_draws(values) for tag, values in draws.items()}} | {
        name: {tag: finite(value) for tag, value in passes.loc[name].dropna().items()} if name in passes.index else None
        for name in REFERENCES
    }


def _means_over_images(evaluation: Evaluation) -> pd.DataFrame:
    """One row per pass and one column per measure: means over the images that have a value, and FID and KID."""
    measured = evaluation.measured
    if "objects" in measured:
        measured = measured.assign(mbo_image=measured["overlap"] / measured["objects"])  # NaN without objects
    passes = measured.drop(columns="image").groupby("draw", sort=False)  # sorted, draw 10 would come before draw 2
    means = passes.mean()
    if "objects" in measured:
        means["mbo_object"] = passes["overlap"].sum() / passes["objects"].sum()
    if "mse" in measured:
        means["mse_per_value"] = means["mse"] / evaluation.images[[0]]["image"].numel()
    for name, features in evaluation.features.items():
        if name != TRUTH and "fid" in evaluation.metrics:
            means.loc[name, "fid"] = fid(evaluation.features[TRUTH], features)
        if name != TRUTH and "kid" in evaluation.metrics:
            means.loc[name, "kid"] = kid(evaluation.features[TRUTH], features, evaluation.seed)
    return means


def _over_draws(values: pd.Series) -> dict[str, Any] | None:
    if values.hasnans:
        return None
    return {"mean": finite(values.mean()), "std": finite(values.std()), "draws": [finite(value) for value in values]}


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with a row per evaluation, and a row per reference below the evaluations that share it."""
    tags = [tag for tag in EVALUATED if any(result["metrics"][tag] for result in results)]
    headings = [f"{m.name} ({m.unit})" if m.unit else m.name for m in (EVALUATED[tag] for tag in tags)]
    lines = [["", "N", *headings], ["---"] * (len(tags) + 2)]
    for result, following in zip_longest(results, results[1:]):
        cells = [_spread(result["metrics"][tag]) for tag in tags]
        lines.append([title(Path(result["checkpoint"])), str(result["images"]), *cells])
        for key, name in REFERENCES.items():
            if result[key] and (following is None or following[key] != result[key]):
                lines.append([name, str(result["images"]), *(_number(result[key].get(tag)) for tag in tags)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def title(checkpoint: Path) -> str:
    """A checkpoint's name in tables: that of its cell or run, or of its file if it is not in a run."""
    run = run_of(checkpoint)
    return checkpoint.name if run is None else run.name


def _spread(value: dict[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "–"
    return _number(value["mean"]) + (f" ± {value['std']:.2g}" if value["std"] else "")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
