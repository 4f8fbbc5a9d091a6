"""A grid's results as pandas frames: `implicit_slate.load_run("runs/demo")`. Imports nothing heavier than pandas."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from implicit_slate.errors import UserError
from implicit_slate.files import read_json
from implicit_slate.measures import COLUMNS, EVALUATED, LOGGED, LOSSES, REFERENCES, column_name
from implicit_slate.run_folder import DONE, RunFolder, tricks_of
from implicit_slate.yaml_files import leaves, load_yaml

SPLITS = {"test": "test", "val": "validation", "train": "training"}
"""The splits in the report, the most important one first, and their names there."""

AXIS_WORDS = {"clip": "clipping", "iterations": "n"}
"""Names of axes in the report, if they differ from the grid's. A setting without a trick is called `no clipping`."""

_NO_SETTING = ("gradient", "solver", "seed")
"""Axes that are not part of a setting, because they are compared within it."""


class Method(NamedTuple):
    """A gradient mode and a forward solver, as named by the grid's axes."""

    gradient: str
    solver: str = "picard"


PAPER = load_yaml(Path(__file__).with_name("claims.yaml"))
"""The paper's `methods`, `claims` and `results`."""

METHODS = {name: Method(*axes) for name, axes in PAPER["methods"].items()}
"""The paper's variants, by their names in the paper."""

UNROLLED, IMPLICIT = METHODS["unrolled"], METHODS["IN"]


@dataclass
class Run:
    """The results of a grid, which may still be running."""

    path: Path
    name: str
    description: str
    axes: list[str]
    """The grid's axes, including `seed`."""
    cells: pd.DataFrame
    """One row per cell: `status`, the axes, `step`, the measures (`measures.COLUMNS`), `seconds`, `steps_per_second`,
    `git`, `versions`, `error`; and, as named in the report, `method` and `setting` (all other axes that vary), both
    ordered categories. What was not measured is NaN."""
    curves: pd.DataFrame
    """One row per finite logged value: `cell`, `tag`, `step`, `value`."""
    evaluations: pd.DataFrame
    """One row per cell, split and `of`, which is "slots" or one of `measures.REFERENCES`; see `_read_evaluations`."""

    def __post_init__(self):
        records = self.cells[self.axes].to_dict("records")
        methods = [Method(str(r.get("gradient", "all")), str(r.get("solver", "picard"))) for r in records]
        order = sorted(dict.fromkeys(methods), key=lambda method: {UNROLLED: 0, IMPLICIT: 1}.get(method, 2))
        self.methods = {_method_label(method, order): method for method in order}
        """The methods by their names in the report: `unrolled` and `implicit` first, then in the grid's order."""
        settings = self.settings_without()
        removed = (self.cells[self.tricks] == "off").sum(axis=1).sort_values(kind="stable")
        self.settings = list(settings[removed.index].unique())
        """The names of the settings: those with the fewest tricks removed first, then in the grid's order."""
        labels = [self.label(method) for method in methods]
        self.cells = self.cells.assign(
            method=pd.Categorical(labels, list(self.methods), ordered=True),
            setting=pd.Categorical(settings, self.settings, ordered=True),
        )

    @cached_property
    def setting_axes(self) -> list[str]:
        """The axes that this grid varies, except those of the method and the seed."""
        return [axis for axis in self.axes if axis not in _NO_SETTING and self.cells[axis].astype(str).nunique() > 1]

    @cached_property
    def tricks(self) -> list[str]:
        """Those of `setting_axes` that remove optimisation tricks."""
        return tricks_of(self.cells[self.setting_axes].to_dict("records"))

    @property
    def method_axes(self) -> list[str]:
        """Those of `gradient` and `solver` that are axes of the grid."""
        return [axis for axis in Method._fields if axis in self.axes]

    @cached_property
    def loss(self) -> str:
        """The validation loss that the slots are trained for: the first of `LOSSES` that any cell has."""
        measured = self.logged | {*self.cells.columns[self.cells.notna().any()]}
        return next((tag for tag in LOSSES if tag in measured), LOSSES[0])

    @cached_property
    def logged(self) -> set[str]:
        """The tags that any cell has logged."""
        return set(self.curves["tag"])

    @property
    def loss_name(self) -> str:
        return LOGGED[self.loss].name

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The cells that are complete or have diverged. Diverged cells have no final values: all their measures are
        NaN, except for the largest values."""
        found = self.cells[self.cells["status"].isin(DONE)].copy()
        final = [column for column, (_, how) in COLUMNS.items() if how != "largest"]
        found.loc[found["status"] == "diverged", final] = np.nan
        return found

    def points(self, tags: Sequence[str]) -> pd.DataFrame:
        """The rows of `curves` for some tags, with each cell's status, setting and axes: the numbers of a figure."""
        place = self.cells[["status", "setting", *self.axes]].reset_index()
        return place.merge(self.curves[self.curves["tag"].isin(tags)], on="cell")

    def folder(self, cell: str) -> Path:
        return RunFolder(self.path, {}).cell(cell)

    def of(self, setting: str, method: str) -> pd.DataFrame:
        """The cells of a setting and a method."""
        return self.cells[(self.cells["setting"] == setting) & (self.cells["method"] == method)]

    def evaluated(self, split: str) -> pd.DataFrame:
        """The rows of `evaluations` of a split, with their cells' `status`, `setting` and `method`; a reference has its
        name as method."""
        found = self.evaluations[self.evaluations["split"] == split]
        found = found.join(self.cells[["status", "setting", "method", *self.method_axes]], on="cell")
        names, methods = found["of"].map(REFERENCES), [*self.methods, *REFERENCES.values()]
        found[self.method_axes] = found[self.method_axes].mask(names.notna(), "")
        return found.assign(method=pd.Categorical(names.fillna(found["method"].astype(str)), methods, ordered=True))

    def curve(self, cell: str, tag: str) -> pd.Series:
        """The values of a tag by step; empty if it was not logged."""
        return self._curves.get((cell, tag), pd.Series(dtype=float))

    def settings_without(self, *without: str) -> pd.Series:
        """The name of each cell's setting, such as `no clipping, n = 7`, if the axes `without` are left out."""
        varied = [axis for axis in self.setting_axes if axis not in without]
        tricks = [axis for axis in varied if axis in self.tricks]
        all_on = "all tricks" if set(without).isdisjoint(self.tricks) else "all other tricks"

        def words(cell: pd.Series) -> str:
            removed = [f"no {AXIS_WORDS.get(axis, axis)}" for axis in tricks if cell[axis] == "off"]
            others = [f"{AXIS_WORDS.get(axis, axis)} = {cell[axis]}" for axis in varied if axis not in tricks]
            return ", ".join((removed or [all_on] * bool(tricks)) + others) or "all cells"

        return pd.Series([words(cell) for _, cell in self.cells.iterrows()], self.cells.index, dtype=object)

    def label(self, method: Method) -> str | None:
        """The name of a method in the report; None if no cell has it."""
        return next((label for label, found in self.methods.items() if found == method), None)

    def place(self, cell: str) -> str:
        """A cell's name in the report, such as `unrolled, no clipping, seed 1`."""
        row = self.cells.loc[cell]
        return ", ".join([row["method"], *([row["setting"]] if self.setting_axes else []), f"seed {row.get('seed')}"])

    def having(self, file: str) -> list[str]:
        """The cells that have `file` in their folder, such as `panels.png` from training."""
        return [cell for cell in self.cells.index if (self.folder(cell) / file).exists()]

    @cached_property
    def shared_settings(self) -> dict[str, Any]:
        """Settings of model and data, and `max_steps`, that all cells share in their `config.yaml`, by dotted key."""
        files = [path for cell in self.cells.index if (path := self.folder(cell) / "config.yaml").exists()]
        found = [dict(leaves(load_yaml(path))) for path in files]
        about = ("model.", "data.", "trainer.max_steps")
        shared = [item for item in (found[0].items() if found else ()) if item[0].startswith(about)]
        return {key: value for key, value in shared if all(key in other and other[key] == value for other in found)}

    def __repr__(self) -> str:
        counts = self.cells["status"].value_counts()
        return f"{self.name}: {', '.join(f'{count} {status}' for status, count in counts.items())}"

    def _repr_html_(self) -> str:
        """For a notebook: the grid's description and state, and the medians of the main results of finished cells."""
        columns = [self.loss, "jacobian/spectral_norm_max", "grad_norm_max"]
        groups = self.finished.groupby(["setting", "method"], observed=True)
        medians = groups[columns].median().dropna(axis=1, how="all")
        table = medians.rename(columns=column_name).to_html(float_format="{:.4g}".format)
        return f"<p><b>{escape(repr(self))}</b></p><p>{escape(self.description)}</p>{table}"

    @cached_property
    def _curves(self) -> dict[tuple[str, str], pd.Series]:
        groups = self.curves.groupby(["cell", "tag"], sort=False)
        return {key: group.set_index("step")["value"] for key, group in groups}


def load_run(path: str | Path) -> Run:
    """Read the folder of a grid, which may still be running: `grid.json`, and each cell's `result.json`, `curves.csv`
    and `evaluation/*.json`.

    Raises:
        UserError: `path` is not the folder of a grid, or one of these files is damaged.
    """
    folder = RunFolder(Path(path))
    numbers = ("step", *COLUMNS, "seconds", "steps_per_second")
    cells, curves, evaluations = [], [], []
    for row in folder.rows():
        cell = row["cell"]
        with damage_named(folder.cell(cell) / "result.json"):
            row |= {key: np.nan if row[key] is None else float(row[key]) for key in numbers}
        row |= {axis: "null" for axis, value in folder.cells[cell].items() if value is None}  # NaN in pandas otherwise
        cells.append(row | {"error": (folder.result(cell) or {}).get("error")})
        curves.append(_read_curves(folder.cell(cell)).assign(cell=cell))
        evaluations += [{"cell": cell, **found} for found in _read_evaluations(folder.cell(cell))]
    facts = folder.facts()
    return Run(
        folder.path,
        str(facts.get("grid") or folder.path.resolve().name),
        " ".join(str(facts.get("description") or "").split()),
        list(dict.fromkeys(axis for axes in folder.cells.values() for axis in axes)),
        pd.DataFrame(cells).set_index("cell"),
        pd.concat(curves, ignore_index=True)[["cell", "tag", "step", "value"]],
        pd.DataFrame(evaluations, columns=None if evaluations else ["cell", "split", "of"]).replace(np.inf, np.nan),
    )


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """A context in which errors from a file's content become a `UserError` that names the file."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: damaged: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _read_curves(folder: Path) -> pd.DataFrame:
    """The rows (`tag`, `step`, `value`) of a cell's `curves.csv` with finite values; empty if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    path, columns = folder / "curves.csv", {"tag": str, "step": int, "value": float}
    with damage_named(path):
        curves = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*columns])
        curves = curves[[*columns]].astype(columns)
    return curves[np.isfinite(curves["value"])]


def _read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The results of `implicit-slate evaluate` in a cell's `evaluation/<split>.json`, in the order of `SPLITS`.

    Returns:
        One row per split and `of` ("slots", and those of `measures.REFERENCES` that exist): `split`, `step` (of the
        checkpoint), `data` (the class of the data module), `image_size`, `images`, `draws`, `masks` (how they were
        enlarged), `applications`, `notes`; the mean over draws of each of `measures.EVALUATED`, and its standard
        deviation over draws as `<key>_std`. Unknown values are NaN or missing.

    Raises:
        UserError: a file is damaged.
    """
    rows = []
    for split in SPLITS:
        path = folder / "evaluation" / f"{split}.json"
        with damage_named(path):
            if content := read_json(path):
                data = content.get("data") or {}
                shared = {
                    "split": split,
                    "data": (data.get("class_path") or "").rpartition(".")[2],
                    "images": int(content["images"]),
                    "draws": int(content.get("draws") or 1),
                    "masks": str(content.get("masks", "nearest")),
                    "applications": str(content.get("applications", "")),
                    "notes": tuple(content.get("notes") or ()),
                }
                shared |= _numbers(step=content.get("step"), image_size=data.get("init_args", {}).get("image_size"))
                scores = {key: content["metrics"].get(key) or {} for key in EVALUATED}
                means = {key: score.get("mean") for key, score in scores.items()}
                deviations = {f"{key}_std": score.get("std") for key, score in scores.items()}
                rows.append({"of": "slots"} | shared | _numbers(**means, **deviations))
                for name in REFERENCES:
                    if known := content.get(name):
                        rows.append({"of": name} | shared | _numbers(**{key: known.get(key) for key in EVALUATED}))
    return rows


def _numbers(**values: Any) -> dict[str, float]:
    return {key: np.nan if value is None else float(value) for key, value in values.items()}


def _method_label(method: Method, methods: Sequence[Method]) -> str:
    """The name of a method in the report: its gradient if all methods have the same solver, its name in the paper if
    all have one, otherwise gradient and solver."""
    if len({other.solver for other in methods}) < 2:
        return method.gradient
    if all(other in METHODS.values() for other in methods):
        return next(name for name, variant in METHODS.items() if variant == method)
    return method.gradient if method == UNROLLED else ", ".join(method)
