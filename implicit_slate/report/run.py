"""A grid's results as pandas frames: `implicit_slate.load_run("runs/demo")`. Nothing heavy but pandas is imported."""

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
"""The splits that the report shows, the more telling one first, and what it calls them."""

AXIS_WORDS = {"clip": "clipping", "iterations": "n"}
"""What the report calls an axis, where that is not the axis' own name. Where a trick is off, its setting is called
`no clipping`."""

_NO_SETTING = ("gradient", "solver", "seed")
"""The axes that are compared within a setting."""


class Method(NamedTuple):
    """How a cell gets its slots and their gradient, as the grid's axes name it."""

    gradient: str
    solver: str = "picard"


PAPER = load_yaml(Path(__file__).with_name("claims.yaml"))
"""What the paper says: `methods`, `claims`, `results`."""

METHODS = {name: Method(*axes) for name, axes in PAPER["methods"].items()}
"""The paper's variants by its names."""

UNROLLED, IMPLICIT = METHODS["unrolled"], METHODS["IN"]


@dataclass
class Run:
    """The results of a grid, finished or under way."""

    path: Path
    name: str
    description: str
    axes: list[str]
    """The grid's axes, `seed` among them."""
    cells: pd.DataFrame
    """By cell: `status`, the axes, `step`, the measures (`measures.COLUMNS`), `seconds`, `steps_per_second`, `git`,
    `versions`, `error`; and, in the words of the report, `method` and `setting` (the other axes that vary), both
    ordered categories. What was not measured is NaN."""
    curves: pd.DataFrame
    """One row per logged value that is finite: `cell`, `tag`, `step`, `value`."""
    evaluations: pd.DataFrame
    """One row per cell, split and `of`: the slots, or one of `measures.REFERENCES`. See `load_run`."""

    def __post_init__(self):
        records = self.cells[self.axes].to_dict("records")
        methods = [Method(str(r.get("gradient", "all")), str(r.get("solver", "picard"))) for r in records]
        order = sorted(dict.fromkeys(methods), key=lambda method: {UNROLLED: 0, IMPLICIT: 1}.get(method, 2))
        self.methods = {_method_label(method, order): method for method in order}
        """The methods by what the report calls them: `unrolled` and `implicit` first, else in the grid's order."""
        settings = self.settings_without()
        removed = (self.cells[self.tricks] == "off").sum(axis=1).sort_values(kind="stable")
        self.settings = list(settings[removed.index].unique())
        """What the settings are called: fewest tricks removed first, else in the grid's order."""
        labels = [self.label(method) for method in methods]
        self.cells = self.cells.assign(
            method=pd.Categorical(labels, list(self.methods), ordered=True),
            setting=pd.Categorical(settings, self.settings, ordered=True),
        )

    @cached_property
    def setting_axes(self) -> list[str]:
        """The axes besides method and seed that this grid varies."""
        return [axis for axis in self.axes if axis not in _NO_SETTING and self.cells[axis].astype(str).nunique() > 1]

    @cached_property
    def tricks(self) -> list[str]:
        """Those of `setting_axes` that take optimisation tricks away."""
        return tricks_of(self.cells[self.setting_axes].to_dict("records"))

    @property
    def method_axes(self) -> list[str]:
        """The axes that make a method and that the grid has: of `gradient` and `solver`."""
        return [axis for axis in Method._fields if axis in self.axes]

    @cached_property
    def loss(self) -> str:
        """The validation loss that the slots are trained for: the first of `LOSSES` that some cell has."""
        measured = self.logged | {*self.cells.columns[self.cells.notna().any()]}
        return next((tag for tag in LOSSES if tag in measured), LOSSES[0])

    @cached_property
    def logged(self) -> set[str]:
        """The tags that some cell has logged."""
        return set(self.curves["tag"])

    @property
    def loss_name(self) -> str:
        return LOGGED[self.loss].name

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The cells that are complete or have diverged. One that has diverged has no final values: NaN stands in all
        measures but the largest ones."""
        found = self.cells[self.cells["status"].isin(DONE)].copy()
        final = [column for column, (_, how) in COLUMNS.items() if how != "largest"]
        found.loc[found["status"] == "diverged", final] = np.nan
        return found

    def points(self, tags: Sequence[str]) -> pd.DataFrame:
        """The rows of `curves` of some tags, with the place of each cell: the numbers behind a figure."""
        place = self.cells[["status", "setting", *self.axes]].reset_index()
        return place.merge(self.curves[self.curves["tag"].isin(tags)], on="cell")

    def folder(self, cell: str) -> Path:
        return RunFolder(self.path, {}).cell(cell)

    def of(self, setting: str, method: str) -> pd.DataFrame:
        """The cells of one setting and one method."""
        return self.cells[(self.cells["setting"] == setting) & (self.cells["method"] == method)]

    def evaluated(self, split: str) -> pd.DataFrame:
        """The rows of `evaluations` of one split, with their cells' `status`, `setting` and `method`; the method of a
        reference is its name."""
        found = self.evaluations[self.evaluations["split"] == split]
        found = found.join(self.cells[["status", "setting", "method", *self.method_axes]], on="cell")
        names, methods = found["of"].map(REFERENCES), [*self.methods, *REFERENCES.values()]
        found[self.method_axes] = found[self.method_axes].mask(names.notna(), "")
        return found.assign(method=pd.Categorical(names.fillna(found["method"].astype(str)), methods, ordered=True))

    def curve(self, cell: str, tag: str) -> pd.Series:
        """The values of a tag by step; empty where it was not logged."""
        return self._curves.get((cell, tag), pd.Series(dtype=float))

    def settings_without(self, *without: str) -> pd.Series:
        """What the setting of each cell is called, as `no clipping, n = 7`, if the axes `without` are left out."""
        varied = [axis for axis in self.setting_axes if axis not in without]
        tricks = [axis for axis in varied if axis in self.tricks]
        all_on = "all tricks" if set(without).isdisjoint(self.tricks) else "all other tricks"

        def words(cell: pd.Series) -> str:
            removed = [f"no {AXIS_WORDS.get(axis, axis)}" for axis in tricks if cell[axis] == "off"]
            others = [f"{AXIS_WORDS.get(axis, axis)} = {cell[axis]}" for axis in varied if axis not in tricks]
            return ", ".join((removed or [all_on] * bool(tricks)) + others) or "all cells"

        return pd.Series([words(cell) for _, cell in self.cells.iterrows()], self.cells.index, dtype=object)

    def label(self, method: Method) -> str | None:
        """What the report calls a method; None if no cell has it."""
        return next((label for label, found in self.methods.items() if found == method), None)

    def place(self, cell: str) -> str:
        """A cell in words: `unrolled, no clipping, seed 1`."""
        row = self.cells.loc[cell]
        return ", ".join([row["method"], *([row["setting"]] if self.setting_axes else []), f"seed {row.get('seed')}"])

    def having(self, file: str) -> list[str]:
        """The cells with a certain file in their folder, as `panels.png`, which training draws."""
        return [cell for cell in self.cells.index if (self.folder(cell) / file).exists()]

    @cached_property
    def shared_settings(self) -> dict[str, Any]:
        """The settings of model and data that are the same in the `config.yaml` of every cell, by dotted key."""
        files = [path for cell in self.cells.index if (path := self.folder(cell) / "config.yaml").exists()]
        found = [dict(leaves(load_yaml(path))) for path in files]
        about = ("model.", "data.", "trainer.max_steps")
        shared = [item for item in (found[0].items() if found else ()) if item[0].startswith(about)]
        return {key: value for key, value in shared if all(key in other and other[key] == value for other in found)}

    def __repr__(self) -> str:
        counts = self.cells["status"].value_counts()
        return f"{self.name}: {', '.join(f'{count} {status}' for status, count in counts.items())}"

    def _repr_html_(self) -> str:
        """For a notebook: what the grid is, how far it is, and the medians of the main results of finished cells."""
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
    """Read the folder of a grid, which may be under way: `grid.json`, and of each cell `result.json`, `curves.csv` and
    `evaluation/*.json`.

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
        row |= {axis: "null" for axis, value in folder.cells[cell].items() if value is None}  # pandas would make it NaN
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
    """Whatever goes wrong with the content of a file becomes a UserError that names the file."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: damaged: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _read_curves(folder: Path) -> pd.DataFrame:
    """The columns `tag`, `step`, `value` of a cell's `curves.csv`, where the value is finite; empty if there is none.

    Raises:
        UserError: the file is damaged.
    """
    path, columns = folder / "curves.csv", {"tag": str, "step": int, "value": float}
    with damage_named(path):
        curves = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*columns])
        curves = curves[[*columns]].astype(columns)
    return curves[np.isfinite(curves["value"])]


def _read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """What `implicit-slate evaluate` left in a cell's `evaluation/<split>.json`, in the order of `SPLITS`.

    Returns:
        one row per split and `of` ("slots", and those of `measures.REFERENCES` that there are): `split`, `step` (of the
        checkpoint), `data` (the class of the data module), `image_size`, `images`, `draws`, `masks` (how they were
        enlarged), `notes`; the mean over draws of each of `measures.EVALUATED`, and its standard deviation over draws
        as `<key>_std`. What is not known is NaN or missing.
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
    """Its gradient if all have one solver, its name in the paper if all have one, else both gradient and solver."""
    if len({other.solver for other in methods}) < 2:
        return method.gradient
    if all(other in METHODS.values() for other in methods):
        return next(name for name, variant in METHODS.items() if variant == method)
    return method.gradient if method == UNROLLED else ", ".join(method)
