"""Named grids of `ablations.yaml`: axes of overrides on an experiment file, combined into cells.

    axes:
      gradient: {unrolled: {model.gradient: unrolled}, implicit: {model.gradient: implicit}}
      clip:     {on: {}, off: {model.optimization.clip_norm: null}}
    grids:
      small:
        description: both gradients, with and without clipping
        experiment: experiments/demo.yaml                  # relative to this file
        cells: {product: [gradient, clip, {seeds: 3}]}
        pretrain: {experiment: experiments/sprites_dvae.yaml, checkpoint: model.dvae_checkpoint}   # optional
        overrides: {trainer.max_steps: 500}                # optional: of every cell; no axis may set the same key

An expression under `cells` stands for a list of choices. A choice maps axes to names of their values:

    gradient                   every value of an axis
    {iterations: [3, 7]}       some values of an axis
    {seeds: 3}                 seeds 0, 1, 2; or a list of seeds
    {product: [a, b]}          every choice of a with every choice of b
    {zip: [a, b]}              the i-th choice of a with the i-th of b
    {chain: [a, b]}            the choices of a, then those of b
    {leave_one_out: [a, b]}    the first choices of a and b together, then each of their other choices in its place
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from implicit_slate.errors import LARGEST_SEED, UserError, nearest
from implicit_slate.run_folder import TAKEN
from implicit_slate.yaml_files import load_yaml, overlap

Choice = dict[str, Any]
"""The name of a value for each axis of a cell, in the order of the grid's axes; `seed` is an axis, too."""

OPERATORS = ("product", "zip", "chain", "leave_one_out", "seeds")
OURS = ("trainer.default_root_dir", "trainer.logger", "trainer.devices", "trainer.num_nodes")
"""Keys that the runner sets in every cell."""


@dataclass(frozen=True)
class Cell:
    """One training run of a grid."""

    id: str
    """Readable, made of the axes, the same on every machine; used as the name of its folder."""
    axes: Choice
    overrides: dict[str, Any]
    """New values for dotted keys of the experiment file."""


@dataclass(frozen=True)
class Grid:
    """A named grid, checked: its cells can be built and its files exist."""

    name: str
    description: str
    experiment: Path
    cells: tuple[Cell, ...]
    overrides: Mapping[str, Any]
    """Overrides of all cells; also contained in the overrides of each cell."""
    pretrain: Path | None = None
    """The experiment of the pretraining, which runs before all cells."""
    checkpoint: str | None = None
    """The dotted key of the cells' experiment that is set to the path of the pretraining's checkpoint."""


def load_grid(path: Path, name: str) -> Grid:
    """Read grid `name` from the file `path`. Raises `UserError` naming the file and the grid, axis, value or key."""
    path = Path(path)
    content = load_yaml(path)
    _check_keys(content, f"{path}", required=("axes", "grids"))
    axes = _checked_axes(content["axes"], path)
    grids = {str(key): grid for key, grid in _mapping(content["grids"], f"{path}: 'grids'").items()}  # a name may be 3
    if name not in grids:
        raise UserError(f"{path}: unknown grid {name!r}{nearest(name, grids)}")
    where = f"{path}: grid {name!r}"
    grid = grids[name]
    _check_keys(grid, where, required=("experiment", "cells"), optional=("description", "pretrain", "overrides"))
    before = ()
    if (pretrain := grid.get("pretrain")) is not None:
        _check_keys(pretrain, f"{where}, 'pretrain'", required=("experiment", "checkpoint"))
        if not isinstance(pretrain["checkpoint"], str):
            raise UserError(f"{where}, 'pretrain': checkpoint={pretrain['checkpoint']!r} is not a dotted key")
        before = (_experiment(pretrain, path, where), pretrain["checkpoint"])
    overrides = _checked_overrides(grid.get("overrides", {}), f"{where}, 'overrides'")
    try:
        cells = make_cells(axes, grid["cells"], overrides, before[1:])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Grid(name, str(grid.get("description", "")), _experiment(grid, path, where), cells, overrides, *before)


def make_cells(
    axes: Mapping[str, Mapping[Any, Mapping[str, Any]]],
    expression: Any,
    overrides: Mapping[str, Any] | None = None,
    pretrained: Sequence[str] = (),
) -> tuple[Cell, ...]:
    """The cells that `expression` stands for, without duplicates. All have the grid's `overrides`; none may set a key
    in `pretrained`.

    Every cell has all axes of the grid and a seed: in branches of a `chain` that do not use an axis it has its first
    value, and the seed defaults to 0.
    """
    choices = expand(axes, expression)
    names = list(dict.fromkeys(axis for choice in choices for axis in choice if axis != "seed"))
    base = {axis: next(iter(axes[axis])) for axis in names} | {"seed": 0}
    cells: dict[str, Cell] = {}
    for choice in choices:
        choice = base | choice
        cell = Cell(cell_id(choice), choice, _overrides(axes, choice, overrides or {}, pretrained))
        if cells.setdefault(cell.id, cell).axes != choice:
            raise UserError(f"two cells would share the name {cell.id!r}; rename a value")
    return tuple(cells.values())


def expand(axes: Mapping[str, Mapping], expression: Any) -> list[Choice]:
    """The choices that an expression stands for; see the module's docstring."""
    if isinstance(expression, str):
        return [{expression: value} for value in _axis(axes, expression)]
    if not isinstance(expression, dict) or len(expression) != 1:
        raise UserError(f"expected an axis or one of {', '.join(OPERATORS)}, got {expression!r}")
    [(operator, operands)] = expression.items()
    if operator == "seeds":
        seeds = list(range(operands)) if type(operands) is int else operands
        seeds = seeds if isinstance(seeds, list) else []
        if not seeds or not all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds):
            raise UserError(f"'seeds' takes a number of seeds or a list of them, got {operands!r}")
        return [{"seed": seed} for seed in seeds]
    if operator not in OPERATORS:
        return _selection(axes, operator, operands)
    if not isinstance(operands, list) or not operands:
        raise UserError(f"{operator!r} takes a list, got {operands!r}")
    branches = [expand(axes, operand) for operand in operands]
    if operator == "leave_one_out":
        base = _merge([branch[0] for branch in branches])
        return [base] + [base | choice for branch in branches for choice in branch[1:]]
    if operator == "chain":
        return list(itertools.chain(*branches))
    if operator == "zip" and len({len(branch) for branch in branches}) > 1:
        raise UserError(f"'zip' takes lists of one length, got {', '.join(str(len(branch)) for branch in branches)}")
    combine = itertools.product if operator == "product" else zip
    return [_merge(choices) for choices in combine(*branches)]


def cell_id(choice: Choice) -> str:
    """For example `gradient=implicit,clip=off,seed=0`; characters unsuitable for a folder's name become `-`."""
    plain = {axis: re.sub(r"[^\w.+-]+", "-", str(value)).strip("-") for axis, value in choice.items()}
    identifier = ",".join(f"{axis}={value}" for axis, value in plain.items())
    if len(identifier) > 200:
        raise UserError(f"the name of a cell is too long for a folder: {identifier}")
    return identifier


def _selection(axes: Mapping[str, Mapping], axis: Any, values: Any) -> list[Choice]:
    known = _axis(axes, axis, or_one_of=OPERATORS)
    chosen = values if isinstance(values, list) else [values]
    if not chosen:
        raise UserError(f"axis {axis!r}: no value is chosen")
    for value in chosen:
        if isinstance(value, (list, dict)) or value not in known:
            raise UserError(f"axis {axis!r} has no value {value!r}{nearest(value, known)}")
    return [{axis: value} for value in chosen]


def _merge(choices: list[Choice] | tuple[Choice, ...]) -> Choice:
    merged: Choice = {}
    for choice in choices:
        for axis in choice:
            if axis in merged:
                raise UserError(f"the axis {axis!r} is combined with itself")
        merged |= choice
    return merged


def _overrides(
    axes: Mapping[str, Mapping], choice: Choice, of_grid: Mapping[str, Any], pretrained: Sequence[str]
) -> dict[str, Any]:
    """All overrides of a cell: the grid's, those of the chosen values, and the seed. No key may be set twice."""
    settings = {"'overrides'": of_grid, "the axis 'seed'": {"seed_everything": choice["seed"]}}
    settings |= {f"the axis {axis!r}": axes[axis][value] for axis, value in choice.items() if axis != "seed"}
    found = {}
    owners = [(key, "'pretrain'") for key in pretrained] + [(key, "`ablate` itself") for key in OURS]
    for name, values in settings.items():
        for key, (other, owner) in itertools.product(values, owners):
            if overlap(key, other):
                raise UserError(f"{owner} and {name} both set {key!r}")
        owners += [(key, name) for key in values]
        found |= values
    return found


def _axis(axes: Mapping[str, Mapping], name: Any, or_one_of: tuple[str, ...] = ()) -> Mapping:
    if name not in axes:
        raise UserError(f"unknown axis {name!r}{nearest(name, [*axes, *or_one_of])}")
    return axes[name]


def _checked_axes(axes: Any, path: Path) -> dict[str, dict]:
    for name, values in _mapping(axes, f"{path}: 'axes'").items():
        where = f"{path}: axis {name!r}"
        if name in OPERATORS or name in TAKEN or not re.fullmatch(r"[A-Za-z]\w*", str(name)):
            raise UserError(f"{where}: this name is taken, or is not a plain word")
        if not _mapping(values, where):
            raise UserError(f"{where}: no values")
        for value, overrides in values.items():
            is_number = isinstance(value, int | float) and math.isfinite(value)  # true for bools, too
            if not (is_number or value is None or isinstance(value, str)):
                raise UserError(f"{where}, value {value}: neither text nor a finite number; write it in quotes")
            _checked_overrides(overrides, f"{where}, value {value!r}")
    return axes


def _checked_overrides(overrides: Any, where: str) -> dict[str, Any]:
    for key in _mapping(overrides, where):
        if not isinstance(key, str):
            raise UserError(f"{where}: {key!r} is not a dotted key")
    return overrides


def _experiment(section: dict, path: Path, where: str) -> Path:
    experiment = path.parent / str(section["experiment"])
    if not experiment.is_file():
        raise UserError(f"{where}: no experiment file {experiment}")
    return experiment


def _check_keys(section: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    for key in _mapping(section, where):
        if key not in required + optional:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, required + optional)}")
    for key in required:
        if key not in section:
            raise UserError(f"{where}: the key {key!r} is missing")


def _mapping(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping, got {value!r}")
    return value
