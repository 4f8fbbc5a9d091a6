"""What `implicit-slate evaluate` left in the folders of cells: `evaluation/<split>.json`, and tables of it."""

import math
from pathlib import Path
from typing import Any

from implicit_slate.errors import UserError
from implicit_slate.files import read_json
from implicit_slate.measures import EVALUATED
from implicit_slate.report.numbers import number

SPLITS = {"test": "test", "val": "validation", "train": "training"}
"""The splits that the report shows, the more telling one first, and what it calls them."""


def read_evaluations(folder: Path, cell: str) -> list[dict[str, Any]]:
    """The evaluations in a cell's folder, in the order of `SPLITS`.

    Returns:
        one row per split and `of` ("slots"; "dvae" for its reconstruction, which passes by the slots, where the model
        has one): `cell`, `split`, `of`, `step` (of the checkpoint), `data` (the class of the data module),
        `image_size`, `images`, `draws`, `notes`; the mean over draws of each of `measures.EVALUATED`, and its standard
        deviation over draws as `<key>_std`. What is not known is NaN or empty.
    Raises:
        UserError: a file is damaged.
    """
    rows = []
    for split in SPLITS:
        path = folder / "evaluation" / f"{split}.json"
        if path.exists() and (content := read_json(path)) is not None:
            rows += _rows(content, path, {"cell": cell, "split": split})
    return rows


def _rows(content: Any, path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    content = _typed(content, path, "the file", dict)
    data = _typed(content.get("data"), path, "data", dict)
    size = _typed(data.get("init_args"), path, "init_args", dict).get("image_size")
    scores, ceiling = (_typed(content.get(key), path, key, dict) for key in ("metrics", "ceiling"))
    step, images, draws = (number(content.get(key), path, key) for key in ("step", "images", "draws"))
    if math.isnan(images):
        raise UserError(f"{path}: 'images': expected the number of images, got {content.get('images')!r}")
    row |= {
        "step": step,
        "data": str(data.get("class_path") or "").rpartition(".")[2],
        "image_size": size if type(size) is int else math.nan,
        "images": int(images),
        "draws": 1 if math.isnan(draws) else int(draws),
        "notes": tuple(map(str, _typed(content.get("notes"), path, "notes", list))),
    }
    slots, dvae = row | {"of": "slots"}, row | {"of": "dvae"}
    for key in EVALUATED:
        score = _typed(scores.get(key), path, key, dict)
        slots[key] = number(score.get("mean"), path, f"metrics.{key}.mean")
        slots[f"{key}_std"] = number(score.get("std"), path, f"metrics.{key}.std")
        dvae[key] = number(ceiling.get(key), path, f"ceiling.{key}")
    return [slots, dvae] if any(not math.isnan(dvae[key]) for key in EVALUATED) else [slots]


def _typed(value: Any, path: Path, name: str, kind: type) -> Any:
    """The value, which is a `kind`; an empty one where it is null or missing."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise UserError(f"{path}: {name!r}: expected a JSON {'object' if kind is dict else 'list'}, got {value!r}")
    return value
