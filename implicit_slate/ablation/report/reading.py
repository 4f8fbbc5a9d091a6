"""What a grid left on disk, read into a `Run`."""

import math
from pathlib import Path

import numpy as np

from implicit_slate.ablation.report.evaluations import read_evaluations
from implicit_slate.ablation.report.parsing import read_json
from implicit_slate.ablation.report.run import CURVES, Cell, Curve, Run
from implicit_slate.ablation.result import read_scalars
from implicit_slate.errors import UserError

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


def read_run(folder: Path) -> Run:
    """Read a grid's folder: `results.json` or, where a cell is newer, its `result.json`; `grid.json`; all curves and
    evaluations.

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
        status = str(row.get("status", "waiting"))
        cells.append(Cell(name, status, axes, row, place, read_curves(place), read_evaluations(place)))
    facts = read_json(folder / "grid.json", dict) if (folder / "grid.json").exists() else {}
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
        for row in read_json(folder / "results.json", list):
            if not isinstance(row, dict) or "cell" not in row:
                raise UserError(f"{folder / 'results.json'}: expected a list of rows, each with a key 'cell'")
            rows[str(row["cell"])] = row
    for path in sorted(folder.glob("cells/*/result.json")):
        row = read_json(path, dict)
        name = str(row.get("cell", path.parent.name))
        rows[name] = rows.get(name, {}) | row
    if not rows:
        raise UserError(f"{folder}: not the folder of a grid: no results.json and no cells/*/result.json with a result")
    return rows


def _is_axis(key: str, value: object) -> bool:
    measured = key in _NOT_AXES or "/" in key or key.startswith(("grad_norm", "residual"))
    return not measured and isinstance(value, (str, int, float, bool))


def _axis_value(value: object) -> object:
    return ("off", "on")[value] if isinstance(value, bool) else value  # YAML reads a bare `on` as true
