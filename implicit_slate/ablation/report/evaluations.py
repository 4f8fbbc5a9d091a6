"""What `implicit-slate evaluate` left in a cell's folder: `evaluation/<split>.json`, pictures and arrays beside it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from implicit_slate.ablation.report.parsing import read_json
from implicit_slate.errors import UserError
from implicit_slate.scores import METRICS

SPLITS = {"test": "test", "val": "validation", "train": "training"}
"""The splits that the report shows, the more telling one first, and what it calls them."""


class Score(NamedTuple):
    """A metric's mean over draws of the initial slots, and the standard deviation over them: None with one draw."""

    mean: float
    over_draws: float | None


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint evaluated on one split. What was not measured is not among its `metrics` and `ceiling`."""

    path: Path
    split: str
    step: int | None
    """The training step of the checkpoint."""
    data: str
    """The class of the data module, as `CLEVRMirror`; empty if the file does not say."""
    image_size: int | None
    images: int
    draws: int
    metrics: dict[str, Score]
    ceiling: dict[str, float]
    """Of the dVAE's own reconstruction, which passes by the slots; empty for a model without one."""
    notes: tuple[str, ...]

    @property
    def files(self) -> dict[str, Path]:
        """The files of this evaluation that are there, by what they hold."""
        stem = self.path.with_suffix("")
        names = {
            "JSON": self.path,
            "row": stem.with_suffix(".md"),
            "per image": stem.with_suffix(".csv"),
            "panels": stem.with_suffix(".png"),
            "arrays": stem.with_name(f"{self.split}_panels.npz"),
        }
        return {name: path for name, path in names.items() if path.exists()}


def read_evaluations(cell: Path) -> dict[str, Evaluation]:
    """The evaluations in a cell's folder by split, in the order of `SPLITS`; UserError naming a damaged file."""
    paths = {split: cell / "evaluation" / f"{split}.json" for split in SPLITS}
    return {split: _read(path, split) for split, path in paths.items() if path.exists()}


def _read(path: Path, split: str) -> Evaluation:
    content = read_json(path, dict)
    data = _entry(content, path, "data", dict)
    scores = _entry(content, path, "metrics", dict, required=True)
    ceiling = _entry(content, path, "ceiling", dict)
    size = _entry(data, path, "init_args", dict).get("image_size")
    metrics = {}
    for key in METRICS.keys() & scores.keys():
        score = _entry(scores, path, key, dict)
        if (mean := _number(score, path, f"metrics.{key}.mean", "mean")) is not None:
            metrics[key] = Score(mean, _number(score, path, f"metrics.{key}.std", "std"))
    best = {key: _number(ceiling, path, f"ceiling.{key}", key) for key in METRICS}
    step, images, draws = (_number(content, path, key, key) for key in ("step", "images", "draws"))
    if images is None:
        raise UserError(f"{path}: 'images': expected the number of images, got {content.get('images')!r}")
    return Evaluation(
        path,
        split,
        None if step is None else int(step),
        str(data.get("class_path") or "").rpartition(".")[2],
        size if type(size) is int else None,
        int(images),
        int(draws or 1),
        {key: metrics[key] for key in METRICS if key in metrics},
        {key: value for key, value in best.items() if value is not None},
        tuple(str(note) for note in _entry(content, path, "notes", list)),
    )


def _entry(content: dict, path: Path, key: str, kind: type, required: bool = False) -> dict | list:
    """`content[key]`, which is a `kind`; an empty one where it is null or missing, unless it is required."""
    value = content.get(key)
    if value is None and not required:
        return kind()
    if not isinstance(value, kind):
        raise UserError(f"{path}: {key!r}: expected a JSON {'object' if kind is dict else 'list'}, got {value!r}")
    return value


def _number(content: dict, path: Path, name: str, key: str) -> float | None:
    """`content[key]` as a float; None where it is null, missing or not finite."""
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{path}: {name!r}: expected a number, got {value!r}")
    return float(value) if math.isfinite(value) else None
