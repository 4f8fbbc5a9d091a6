"""A grid as the report sees it: its cells, their results and their curves. The whole report is made from this."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from implicit_slate.ablation.report.evaluations import Evaluation
from implicit_slate.ablation.report.methods import IMPLICIT, UNROLLED, Method, labels
from implicit_slate.ablation.report.parsing import leaves
from implicit_slate.yaml_files import load_yaml

SPECTRAL_NORM = "jacobian/spectral_norm"
GRADIENT_NORM = "grad_norm"
CROSS_ENTROPY = "val/cross_entropy"
MSE = "val/mse"
LOSS = "val/loss"
RESIDUAL = "residual"
COSINE = "gradient/cosine"
ATTENTION_ENTROPY = "slots/attention_entropy"
SLOTS_IN_USE = "slots/in_use"
INFORMATION = "slots/information"
FG_ARI = "slots/fg_ari"

LOSSES = {CROSS_ENTROPY: "validation cross-entropy", MSE: "validation MSE", LOSS: "validation loss"}
"""The validation losses that slots can be trained for, and what the report calls them. The first that was logged is it:
a model with tokens logs the MSE of its dVAE, too, and every model the sum of its losses."""

CURVES = (
    *LOSSES, SPECTRAL_NORM, GRADIENT_NORM, RESIDUAL, COSINE, ATTENTION_ENTROPY, SLOTS_IN_USE, INFORMATION, FG_ARI
)  # fmt: skip
"""The scalars over steps that the report draws, by their TensorBoard tags."""

TRICKS = {"clip": "clipping", "warmup": "warmup", "decay": "decay"}
"""The axes of the optimisation tricks, `on` or `off`, and how the report calls them."""

FINISHED = ("complete", "diverged")

NO_SETTING = ("gradient", "solver", "seed")
"""The axes that are compared within a setting."""

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
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    """By split; see `evaluations.py`."""

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
        """The validation loss that the slots are trained for: the first of `LOSSES` that some cell has."""
        measured = (tag for tag in LOSSES for cell in self.cells if tag in cell.curves or cell.number(tag) is not None)
        return next(measured, CROSS_ENTROPY)

    @property
    def loss_name(self) -> str:
        return LOSSES[self.loss]

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
                    k: v for k, v in leaves(load_yaml(path)) if k.startswith(("model.", "data.", "trainer.max_steps"))
                }
                shared = found if shared is None else {k: v for k, v in shared.items() if found.get(k, _MISSING) == v}
        return shared or {}
