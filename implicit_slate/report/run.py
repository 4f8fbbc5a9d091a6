"""A grid's results as pandas frames: `implicit_slate.load_run("runs/demo")`. Nothing heavy but pandas is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from implicit_slate.errors import UserError
from implicit_slate.measures import COLUMNS, LOGGED, LOSSES
from implicit_slate.report.evaluations import read_evaluations
from implicit_slate.run_folder import DONE, RunFolder
from implicit_slate.yaml_files import leaves, load_yaml

AXIS_WORDS = {"clip": "clipping", "iterations": "n"}
"""What the report calls an axis, where that is not the axis' own name. An axis that is only `on` or `off` is a trick:
where it is off, its setting is called `no clipping`."""

_NO_SETTING = ("gradient", "solver", "seed")
"""The axes that are compared within a setting."""


class Method(NamedTuple):
    """How a cell gets its slots and their gradient, as the grid's axes name it."""

    gradient: str
    solver: str = "picard"


UNROLLED = Method("unrolled")
IMPLICIT = IN = Method("implicit")
IB = Method("exact(broyden, 7)")
BN = Method("implicit", "broyden")
BB = Method("exact(broyden, 7)", "broyden")

PAPER_NAMES = {UNROLLED: "unrolled", IN: "IN", IB: "IB", BN: "BN", BB: "BB"}
"""The paper's variants: the first letter is the forward solver (iterate, Broyden), the second the backward one
(Neumann: one recorded application; Broyden)."""


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
    """One row per cell, split and `of`: the slots, or the dVAE alone. See `read_evaluations`."""

    def __post_init__(self):
        methods = [Method(str(r.get("gradient", "all")), str(r.get("solver", "picard"))) for r in self._records]
        order = sorted(dict.fromkeys(methods), key=lambda method: {UNROLLED: 0, IMPLICIT: 1}.get(method, 2))
        self.methods = {_method_label(method, order): method for method in order}
        """The methods by what the report calls them: `unrolled` and `implicit` first, else in the grid's order."""
        labels = [_method_label(method, order) for method in methods]
        removed: dict[str, int] = {}
        for record, setting in zip(self._records, self.settings_without()):
            removed.setdefault(setting, sum(record[axis] == "off" for axis in self.tricks))
        self.settings = sorted(removed, key=removed.get)
        """What the settings are called: fewest tricks removed first, else in the grid's order."""
        self.cells = self.cells.assign(
            method=pd.Categorical(labels, list(self.methods), ordered=True),
            setting=pd.Categorical(self.settings_without(), self.settings, ordered=True),
        )

    @cached_property
    def setting_axes(self) -> list[str]:
        """The axes besides method and seed that this grid varies."""
        return [axis for axis in self.axes if axis not in _NO_SETTING and self.cells[axis].astype(str).nunique() > 1]

    @cached_property
    def tricks(self) -> list[str]:
        """Those of `setting_axes` that are only `on` or `off`."""
        return [axis for axis in self.setting_axes if set(self.cells[axis]) <= {"on", "off"}]

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

    @property
    def finished(self) -> pd.DataFrame:
        """The cells that are complete or have diverged."""
        return self.cells[self.cells["status"].isin(DONE)]

    def points(self, tags: Sequence[str]) -> pd.DataFrame:
        """The rows of `curves` of some tags, with the place of each cell: the numbers behind a figure."""
        place = self.cells[["status", "setting", *self.axes]].reset_index()
        return place.merge(self.curves[self.curves["tag"].isin(tags)], on="cell")

    def folder(self, cell: str) -> Path:
        return RunFolder(self.path, {}).cell(cell)

    def of(self, setting: str, method: str) -> pd.DataFrame:
        """The cells of one setting and one method."""
        return self.cells[(self.cells["setting"] == setting) & (self.cells["method"] == method)]

    def curve(self, cell: str, tag: str) -> pd.Series:
        """The values of a tag by step; empty where it was not logged."""
        return self._curves.get((cell, tag), pd.Series(dtype=float))

    def settings_without(self, without: Sequence[str] = ()) -> list[str]:
        """What the setting of each cell is called, as `no clipping, n = 7`, if the axes `without` are left out."""
        varied = [axis for axis in self.setting_axes if axis not in without]
        return [self._setting(record, varied, without) for record in self._records]

    def label(self, method: Method) -> str | None:
        """What the report calls a method; None if no cell has it."""
        return next((label for label, found in self.methods.items() if found == method), None)

    def place(self, cell: str) -> str:
        """A cell in words: `unrolled, no clipping, seed 1`."""
        row = self.cells.loc[cell]
        return ", ".join([row["method"], *([row["setting"]] if self.setting_axes else []), f"seed {row.get('seed')}"])

    @cached_property
    def pictured(self) -> list[str]:
        """The cells that have drawn a picture of reconstructions and masks, `panels.png`."""
        return [cell for cell in self.cells.index if (self.folder(cell) / "panels.png").exists()]

    @cached_property
    def shared_settings(self) -> dict[str, Any]:
        """The settings of model and data that are the same in the `config.yaml` of every cell, by dotted key."""
        files = [path for cell in self.cells.index if (path := self.folder(cell) / "config.yaml").exists()]
        found = [dict(leaves(load_yaml(path))) for path in files]
        about = ("model.", "data.", "trainer.max_steps")
        shared = [item for item in (found[0].items() if found else ()) if item[0].startswith(about)]
        return {key: value for key, value in shared if all(key in other and other[key] == value for other in found)}

    @property
    def _records(self) -> list[dict[str, Any]]:
        return self.cells[self.axes].to_dict("records")

    @cached_property
    def _curves(self) -> dict[tuple[str, str], pd.Series]:
        groups = self.curves.groupby(["cell", "tag"], sort=False)
        return {key: group.set_index("step")["value"] for key, group in groups}

    def _setting(self, record: Mapping[str, Any], varied: Sequence[str], without: Sequence[str]) -> str:
        parts = []
        if tricks := [axis for axis in varied if axis in self.tricks]:
            removed = [f"no {axis_word(axis)}" for axis in tricks if record[axis] == "off"]
            all_on = "all other tricks" if any(axis in self.tricks for axis in without) else "all tricks"
            parts.append(", ".join(removed) or all_on)
        parts += [f"{axis_word(axis)} = {record[axis]}" for axis in varied if axis not in tricks]
        return ", ".join(parts) or "all cells"


def axis_word(axis: str) -> str:
    """What the report calls an axis."""
    return AXIS_WORDS.get(axis, axis)


def load_run(path: str | Path) -> Run:
    """Read the folder of a grid, which may be under way: `grid.json`, and of each cell `result.json`, `curves.csv` and
    `evaluation/*.json`.

    Raises:
        UserError: `path` is not the folder of a grid, or one of these files is damaged.
    """
    folder = RunFolder(Path(path))
    cells = pd.DataFrame([_numbers(row, folder.cell(row["cell"]) / "result.json") for row in folder.rows()])
    cells = cells.set_index("cell")
    cells["error"] = [(folder.result(cell) or {}).get("error") for cell in cells.index]
    curves = [_read_curves(folder.cell(cell) / "curves.csv", cell) for cell in cells.index]
    evaluations = [row for cell in cells.index for row in read_evaluations(folder.cell(cell), cell)]
    evaluations = pd.DataFrame(evaluations, columns=None if evaluations else ["cell", "split", "of"])
    facts = folder.facts()
    return Run(
        folder.path,
        str(facts.get("grid") or folder.path.resolve().name),
        " ".join(str(facts.get("description") or "").split()),
        list(dict.fromkeys(axis for axes in folder.cells.values() for axis in axes)),
        cells,
        pd.concat(curves, ignore_index=True),
        evaluations.replace([np.inf, -np.inf], np.nan),
    )


def _numbers(row: dict[str, Any], path: Path) -> dict[str, Any]:
    """The row of a cell with its numbers as floats, NaN for null."""
    columns = ("step", *COLUMNS, "seconds", "steps_per_second")
    try:
        return row | {column: np.nan if row[column] is None else float(row[column]) for column in columns}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _read_curves(path: Path, cell: str) -> pd.DataFrame:
    columns = {"tag": str, "step": int, "value": float}
    try:
        curves = pd.read_csv(path)[[*columns]] if path.exists() else pd.DataFrame(columns=[*columns])
        curves = curves.astype(columns)
    except (OSError, ValueError, KeyError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path}: cannot be read as curves: {' '.join(str(error).split())}") from error
    curves.insert(0, "cell", cell)
    return curves[np.isfinite(curves["value"])]


def _method_label(method: Method, methods: Sequence[Method]) -> str:
    """Its gradient if all have one solver, its name in the paper if all have one, else both gradient and solver."""
    if len({other.solver for other in methods}) < 2:
        return method.gradient
    if all(other in PAPER_NAMES for other in methods):
        return PAPER_NAMES[method]
    return method.gradient if method == UNROLLED else ", ".join(method)
