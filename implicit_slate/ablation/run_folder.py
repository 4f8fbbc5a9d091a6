"""The folder of a grid's run: its layout, its locks, and the state of every cell as the files tell it."""

import csv
import fcntl
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from implicit_slate.ablation.matrix import Cell, Grid
from implicit_slate.ablation.result import GRADIENT_TAGS, PRECISION_TAGS, SLOT_TAGS
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically
from implicit_slate.yaml_files import load_yaml

MEASURES = (
    "step",
    "val/cross_entropy",
    "val/mse",
    "val/loss",
    "jacobian/spectral_norm_final",
    "jacobian/spectral_norm_max",
    "jacobian/spectral_radius_final",
    "grad_norm_max",
    "residual_final",
    "evaluations",
    *GRADIENT_TAGS,
    *(f"{tag}_final" for tag in SLOT_TAGS),
    *PRECISION_TAGS,
    "seconds",
    "steps_per_second",
    "git",
    "versions",
)
"""What a row of `results.json` holds after the cell's id, its status and its axes."""

FINISHED = ("complete", "diverged", "failed")


class CellLock:
    """Held while somebody works on a cell, by its worker and by the cell's process, to which it travels by pickling.

    The kernel lets it go when the last of them is dead: a free lock proves that nobody writes in the folder any more.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def release(self) -> None:
        os.close(self.descriptor)

    def __getstate__(self):
        return reduction.DupFd(self.descriptor)

    def __setstate__(self, duplicate) -> None:
        self.descriptor = duplicate.detach()


class RunFolder:
    """`runs/<grid>/`, one folder a run; hosts that share a run share the folder."""

    def __init__(self, path: Path, cells: Iterable[Cell]):
        self.path = Path(path)
        self.cells = {cell.id: cell for cell in cells}
        self.pretrain = self.path / "pretrain"

    def cell(self, cell_id: str) -> Path:
        return self.path / "cells" / cell_id

    def check(self, grid: Grid, devices: int | None = None) -> None:
        """`UserError` if the folder holds another grid, this grid in another configuration, or something else.

        Of the configuration are the cells, the experiment files and the number of devices of a cell (None: any), which
        changes the batch.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path}: is not a folder")
        old = read_json(self.path / "grid.json")
        if old is None:
            if any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise UserError(f"{self.path}: holds other files and no run of a grid; give another --out")
            return
        old = old["configuration"]
        new = _configuration(grid, old["devices"] if devices is None else devices)
        if old != new:
            what = _first_difference(old, new)
            raise UserError(f"{self.path}: holds a run of another configuration ({what} differs); give another --out")

    def begin(self, grid: Grid, devices: int) -> str:
        """Make the folder if it is not there, and return the name of its study; `UserError` as for `check`."""
        with self.lock():
            self.check(grid, devices)
            file = self.path / "grid.json"
            if not file.exists():
                content = {
                    "grid": grid.name,
                    "description": grid.description,
                    "study": f"{grid.name}-{secrets.token_hex(4)}",  # several folders may use one storage
                    "configuration": _configuration(grid, devices),
                }
                write_atomically(file, json.dumps(content, indent=1) + "\n")
            return json.loads(file.read_text())["study"]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One at a time, over all processes: whoever changes the queue or the tables of results."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def result(self, cell_id: str) -> dict[str, Any] | None:
        """The content of the cell's `result.json`, None while there is none."""
        return read_json(self.cell(cell_id) / "result.json")

    def status(self, cell_id: str) -> str:
        """`complete`, `diverged`, `failed`, `running` or `waiting`; reads only."""
        result = self.result(cell_id)
        if result is not None:
            return result["status"]
        return "running" if is_locked(self.cell(cell_id)) else "waiting"

    def forget_failures(self) -> None:
        """Let failed cells run once more: whoever starts the grid again has mended something."""
        with self.lock():
            again = [cell for cell in self.cells if (self.result(cell) or {}).get("status") == "failed"]
            for folder in map(self.cell, again):
                (folder / "result.json").unlink()
            if (read_json(self.pretrain / "result.json") or {}).get("status") in ("failed", "diverged"):
                (self.pretrain / "result.json").unlink()

    def rows(self) -> list[dict[str, Any]]:
        """One row a cell, in the grid's order, with the keys of `results.json`."""
        return [self._row(cell) for cell in self.cells.values()]

    def write_results(self) -> None:
        """Write `results.json` and `results.csv`, each whole or not at all."""
        with self.lock():
            rows = self.rows()
            write_atomically(self.path / "results.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
            table = io.StringIO()
            writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, "versions": json.dumps(row["versions"] or {})} for row in rows)
            write_atomically(self.path / "results.csv", table.getvalue())

    def _row(self, cell: Cell) -> dict[str, Any]:
        result = self.result(cell.id) or {}
        progress = read_json(self.cell(cell.id) / "progress.json") or {}
        measures = {key: result.get(key) for key in MEASURES}
        if not result:
            measures["step"] = progress.get("step")
        return {"cell": cell.id, "status": self.status(cell.id), **cell.axes, **measures}


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file, None if it is not there."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def try_lock(folder: Path) -> CellLock | None:
    """The lock of a cell's folder, or None if somebody holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return CellLock(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether somebody works in the cell's folder now; makes no file."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _configuration(grid: Grid, devices: int) -> dict[str, Any]:
    """All that decides what the cells compute, as plain JSON; comments and order in the YAML files do not count."""
    configuration = {
        "grid": grid.name,
        "devices": devices,
        "experiment": load_yaml(grid.experiment),
        "pretrain": grid.pretrain and load_yaml(grid.pretrain.experiment),
        "cells": {cell.id: cell.overrides for cell in grid.cells},
    }
    return json.loads(json.dumps(configuration, default=str))


def _first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The dotted key of the first leaf that only one of two mappings has, or that they do not agree on."""
    old_leaves, new_leaves, absent = dict(_leaves(old)), dict(_leaves(new)), object()
    return next(k for k in [*new_leaves, *old_leaves] if old_leaves.get(k, absent) != new_leaves.get(k, absent))


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
