"""What a grid left on disk: its cells, their results and their curves. The whole report is made from this."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from implicit_slate.ablation.report.methods import IMPLICIT, UNROLLED, Method, labels
from implicit_slate.ablation.result import read_scalars
from implicit_slate.errors import UserError

SPECTRAL_NORM = "jacobian/spectral_norm"
GRADIENT_NORM = "grad_norm"
CROSS_ENTROPY = "val/cross_entropy"
MSE = "val/mse"
RESIDUAL = "residual"
COSINE = "gradient/cosine"
CURVES = (SPECTRAL_NORM, GRADIENT_NORM, CROSS_ENTROPY, MSE, RESIDUAL, COSINE)
"""The scalars over steps that the report draws, by their TensorBoard tags."""

TRICKS = {"clip": "clipping", "warmup": "warmup", "decay": "decay"}
"""The axes of the optimisation tricks, `on` or `off`, and how the report calls them."""

FINISHED = ("complete", "diverged")

NO_SETTING = ("gradient", "solver", "seed")
"""The axes that are compared within a setting."""

_NOT_AXES = {
    "cell",
    "status",
    "step",
    "evaluations",
    "seconds",
    "steps_per_second",
    "git",
    "versions",
    "error",
    "reason",
}

_MISSING = object()


@dataclass(frozen=True)
class Curve:
    """One scalar over training: `steps` increase strictly, `values` are finite."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class Cell:
    """One training run of the grid: its place on the axes, its row of `results.json`, and its folder."""

    name: str
    status: str
    axes: dict[str, object]
    row: dict
    folder: Path
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        """Its gradient mode and solver; a grid without an axis of solvers has one solver, and it does not matter."""
        return Method(str(self.axes.get("gradient", "all")), str(self.axes.get("solver", "picard")))

    @property
    def seed(self) -> object:
        return self.axes.get("seed")

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    @property
    def panels(self) -> Path | None:
        """Its picture of reconstructions and masks, if it has drawn one."""
        path = self.folder / "panels.png"
        return path if path.exists() else None

    def number(self, key: str) -> float | None:
        """A value of the row as a float; None where it is missing or not finite."""
        value = self.row.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        return float(value)


@dataclass
class Run:
    """A grid's folder, read."""

    folder: Path
    facts: dict
    cells: list[Cell]

    @property
    def name(self) -> str:
        return str(self.facts.get("grid") or self.folder.resolve().name)

    @property
    def description(self) -> str:
        """What `ablations.yaml` says of the grid, assumed settings marked; empty if it says nothing."""
        return str(self.facts.get("description") or "").strip()

    @cached_property
    def methods(self) -> list[Method]:
        """What the cells are compared by: `unrolled` and `implicit` first, else in the grid's order."""
        found = dict.fromkeys(cell.method for cell in self.cells)
        return sorted(found, key=lambda method: {UNROLLED: 0, IMPLICIT: 1}.get(method, 2))

    @cached_property
    def labels(self) -> dict[Method, str]:
        """What the report calls each method."""
        return labels(self.methods)

    @property
    def several_solvers(self) -> bool:
        return len({method.solver for method in self.methods}) > 1

    @cached_property
    def method_axes(self) -> list[str]:
        """The axes that make a method: `gradient`, and `solver` where the grid has it."""
        return ["gradient"] + ["solver"] * any("solver" in cell.axes for cell in self.cells)

    @cached_property
    def loss(self) -> str:
        """The validation loss that the slots are trained for: the cross-entropy, without a transformer the MSE."""
        has_tokens = any(CROSS_ENTROPY in cell.curves or cell.number(CROSS_ENTROPY) is not None for cell in self.cells)
        has_mse = any(MSE in cell.curves or cell.number(MSE) is not None for cell in self.cells)
        return MSE if has_mse and not has_tokens else CROSS_ENTROPY

    @property
    def loss_name(self) -> str:
        return {CROSS_ENTROPY: "validation cross-entropy", MSE: "validation MSE"}[self.loss]

    @cached_property
    def setting_axes(self) -> list[str]:
        """The axes besides method and seed that this grid varies: each combination is one setting, one panel."""
        values: dict[str, set] = {}
        for cell in self.cells:
            for axis, value in cell.axes.items():
                values.setdefault(axis, set()).add(str(value))
        return [axis for axis, found in values.items() if axis not in NO_SETTING and len(found) > 1]

    @cached_property
    def settings(self) -> list[str]:
        """The labels of all settings: fewest tricks removed first, else in the grid's order."""
        removed = {}
        for cell in self.cells:
            removed.setdefault(self.setting(cell), sum(cell.axes.get(trick) == "off" for trick in TRICKS))
        return sorted(removed, key=removed.get)

    def setting(self, cell: Cell, without: Sequence[str] = ()) -> str:
        """The label of a cell's setting, for instance `no clipping, n = 7`; the axes `without` are left out of it."""
        axes = [axis for axis in self.setting_axes if axis not in without]
        parts = []
        if tricks := [axis for axis in axes if axis in TRICKS]:
            removed = [TRICKS[axis] for axis in tricks if cell.axes.get(axis) == "off"]
            kept_all = "all other tricks" if any(axis in TRICKS for axis in without) else "all tricks"
            parts.append(", ".join(f"no {trick}" for trick in removed) if removed else kept_all)
        for axis in axes:
            if axis not in TRICKS:
                parts.append(f"{'n' if axis == 'iterations' else axis} = {cell.axes.get(axis)}")
        return ", ".join(parts) or "all cells"

    def place(self, cell: Cell) -> str:
        """The cell in words: `unrolled, no clipping, seed 1`."""
        setting = [self.setting(cell)] if self.setting_axes else []
        return ", ".join([self.labels[cell.method], *setting, f"seed {cell.seed}"])

    def of(self, setting: str | None = None, method: Method | None = None) -> list[Cell]:
        """The cells of one setting and one method; None stands for every one."""
        return [
            cell
            for cell in self.cells
            if (setting is None or self.setting(cell) == setting) and (method is None or cell.method == method)
        ]

    @cached_property
    def shared_settings(self) -> dict[str, object]:
        """The settings of model and data that are the same in every cell's `config.yaml`, by dotted key."""
        shared: dict[str, object] | None = None
        for path in (cell.folder / "config.yaml" for cell in self.cells):
            if path.exists():
                found = {
                    k: v for k, v in _leaves(_read_yaml(path)) if k.startswith(("model.", "data.", "trainer.max_steps"))
                }
                shared = found if shared is None else {k: v for k, v in shared.items() if found.get(k, _MISSING) == v}
        return shared or {}


def read_run(folder: Path) -> Run:
    """Read a grid's folder: `results.json` or, where a cell is newer, its `result.json`; `grid.json`; and all curves.

    Raises UserError where `folder` is not the folder of a grid, or one of these files is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the folder of a grid, as runs/demo")
    rows = _rows(folder)
    cells = []
    for name, row in rows.items():
        axes = {key: _axis_value(value) for key, value in row.items() if _is_axis(key, value)}
        place = folder / "cells" / name
        cells.append(Cell(name, str(row.get("status", "waiting")), axes, row, place, read_curves(place)))
    facts = _read_json(folder / "grid.json", dict) if (folder / "grid.json").exists() else {}
    return Run(folder, facts, cells)


def read_curves(folder: Path) -> dict[str, Curve]:
    """The scalars of `CURVES` in a cell's TensorBoard event files, by tag; what is not finite is left out."""
    curves = {}
    scalars = read_scalars(folder)
    for tag in CURVES:
        points = [(step, value) for step, value in scalars.get(tag, {}).items() if math.isfinite(value)]
        if points:
            steps, values = zip(*points)
            curves[tag] = Curve(np.array(steps), np.array(values))
    return curves


def _rows(folder: Path) -> dict[str, dict]:
    rows = {}
    if (folder / "results.json").exists():
        for row in _read_json(folder / "results.json", list):
            if not isinstance(row, dict) or "cell" not in row:
                raise UserError(f"{folder / 'results.json'}: expected a list of rows, each with a key 'cell'")
            rows[str(row["cell"])] = row
    for path in sorted(folder.glob("cells/*/result.json")):
        row = _read_json(path, dict)
        name = str(row.get("cell", path.parent.name))
        rows[name] = rows.get(name, {}) | row
    if not rows:
        raise UserError(f"{folder}: not the folder of a grid: no results.json and no cells/*/result.json with a result")
    return rows


def _read_json(path: Path, kind: type) -> list | dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: expected a JSON {'object' if kind is dict else 'list'}")
    return content


def _read_yaml(path: Path) -> dict:
    import yaml

    try:
        content = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def _leaves(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of a LightningCLI config, `init_args` left out of the keys as on its command line."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_axis(key: str, value: object) -> bool:
    measured = key in _NOT_AXES or "/" in key or key.startswith(("grad_norm", "residual"))
    return not measured and isinstance(value, (str, int, float, bool))


def _axis_value(value: object) -> object:
    return ("off", "on")[value] if isinstance(value, bool) else value  # YAML reads a bare `on` as true
