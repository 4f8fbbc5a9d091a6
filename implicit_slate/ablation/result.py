"""A cell's `result.json`, computed from its TensorBoard events and the way it ended."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from implicit_slate.files import write_atomically
from implicit_slate.provenance import revision, versions

Scalars = dict[str, dict[int, float]]
"""Of each tag, the value at each step, in the order of the steps."""

GRADIENT_TAGS = (
    "gradient/cosine", "gradient/norm_ratio", "gradient/adjoint_residual", "gradient/adjoint_products",
    "adjoint/products", "adjoint/residual",
)  # fmt: skip
"""Of the mode's gradient beside the exact one, and of an exact mode's own backward solve."""

SLOT_TAGS = ("slots/attention_entropy", "slots/in_use", "slots/information", "slots/fg_ari")
"""How the slots share out the images; the last value stands in a row as `<tag>_final`."""

PRECISION_TAGS = ("val/ap_inf", "val/ap_1", "val/ap_0.5", "val/ap_0.25", "val/ap_0.125")
"""Average precision of predicted properties within a distance."""


def read_scalars(folder: Path) -> Scalars:
    """All scalars in the event files of `folder`; where a resumed run repeats a step, the later file holds."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader  # 1 s to import

    scalars: Scalars = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.name):  # by time
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: dict(sorted(values.items())) for tag, values in scalars.items()}


def summarise(scalars: Mapping[str, Mapping[int, float]]) -> dict[str, float | None]:
    """The measures of a row that come from the curves; null for what is not finite or not there."""

    def last(tag: str) -> float | None:
        return _finite(list(scalars[tag].values())[-1]) if tag in scalars else None

    def largest(tag: str) -> float | None:
        # A NaN is the largest: Python's max would skip over it.
        values = list(scalars.get(tag, {}).values())
        return _finite(math.nan if any(map(math.isnan, values)) else max(values, default=math.nan))

    return {
        "val/cross_entropy": last("val/cross_entropy"),
        "val/mse": last("val/mse"),
        "val/loss": last("val/loss"),
        "jacobian/spectral_norm_final": last("jacobian/spectral_norm"),
        "jacobian/spectral_norm_max": largest("jacobian/spectral_norm"),
        "jacobian/spectral_radius_final": last("jacobian/spectral_radius"),
        "grad_norm_max": largest("grad_norm"),
        "residual_final": last("residual"),
        "evaluations": last("evaluations"),
        **{tag: last(tag) for tag in GRADIENT_TAGS},
        **{f"{tag}_final": last(tag) for tag in SLOT_TAGS},
        **{tag: last(tag) for tag in PRECISION_TAGS},
    }


def final_loss(row: Mapping[str, Any]) -> float | None:
    """What the slots are trained for, on the validation set: the cross-entropy, without a transformer the MSE, and of
    a model that makes no images its loss."""
    losses = (row.get(key) for key in ("val/cross_entropy", "val/mse", "val/loss"))
    return next((loss for loss in losses if loss is not None), None)


def write_result(
    folder: Path, status: str, step: int | None = None, seconds: float | None = None, error: str | None = None
) -> dict[str, Any]:
    """Write `folder/result.json` and return its content: the keys of a row of `results.json`, and for a failed cell
    the error in one line. `folder/cell.json` says which cell it is."""
    cell = json.loads((folder / "cell.json").read_text())
    result = {
        "cell": cell["cell"],
        "status": status,
        **cell["axes"],
        "step": step,
        **summarise(read_scalars(folder)),
        "seconds": seconds,
        "steps_per_second": step / seconds if step and seconds else None,
        "git": revision(),
        "versions": versions(),
    }
    if error is not None:
        result["error"] = error
    write_atomically(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
