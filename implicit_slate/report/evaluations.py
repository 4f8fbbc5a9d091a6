"""What `implicit-slate evaluate` left in the folder of a cell: `evaluation/<split>.json`."""

from pathlib import Path
from typing import Any

from implicit_slate.errors import UserError
from implicit_slate.files import read_json
from implicit_slate.measures import EVALUATED

SPLITS = {"test": "test", "val": "validation", "train": "training"}
"""The splits that the report shows, the more telling one first, and what it calls them."""


def read_evaluations(folder: Path, cell: str) -> list[dict[str, Any]]:
    """The evaluations in a cell's folder, in the order of `SPLITS`.

    Returns:
        one row per split and `of` ("slots"; "dvae" for its reconstruction, which passes by the slots, where the model
        has one): `cell`, `split`, `of`, `step` (of the checkpoint), `data` (the class of the data module),
        `image_size`, `images`, `draws`, `notes`; the mean over draws of each of `measures.EVALUATED`, and its standard
        deviation over draws as `<key>_std`. What is not known is None or missing.
    Raises:
        UserError: a file is damaged.
    """
    rows = []
    for split in SPLITS:
        path = folder / "evaluation" / f"{split}.json"
        content = read_json(path)
        try:
            rows += _rows(content, {"cell": cell, "split": split}) if content else []
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not in the format of an evaluation ({type(error).__name__}: {error})") from error
    return rows


def _rows(content: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    data, ceiling = content.get("data") or {}, content.get("ceiling") or {}
    scores = {key: content["metrics"].get(key) or {} for key in EVALUATED}
    row |= {
        "step": _number(content.get("step")),
        "data": (data.get("class_path") or "").rpartition(".")[2],
        "image_size": _number(data.get("init_args", {}).get("image_size")),
        "images": int(content["images"]),
        "draws": int(content.get("draws") or 1),
        "notes": tuple(content.get("notes") or ()),
    }
    means = {key: _number(score.get("mean")) for key, score in scores.items()}
    deviations = {f"{key}_std": _number(score.get("std")) for key, score in scores.items()}
    rows = [row | {"of": "slots"} | means | deviations]
    if ceiling:
        rows.append(row | {"of": "dvae"} | {key: _number(ceiling.get(key)) for key in EVALUATED})
    return rows


def _number(value: Any) -> float | None:
    if value is not None and not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r}")
    return value
