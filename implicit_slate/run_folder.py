"""The folder of a grid's run: its files, and the state of every cell.

Two things decide the state of a cell: `result.json` (it is done) and the lock of its folder (a process is working on
it). All other files are for information only.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from filelock import AcquireReturnProxy, FileLock

from implicit_slate.errors import UserError
from implicit_slate.files import read_json, write_atomically
from implicit_slate.locks import is_locked
from implicit_slate.measures import COLUMNS, EVALUATED, summarise
from implicit_slate.provenance import revision, versions

DONE = ("complete", "diverged")
"""Cells with these results are not run again; failed ones are when the grid is started again."""

FINISHED = (*DONE, "failed")
"""The states in `result.json`; a cell without this file is `running` or `waiting`."""

ABOUT = ("seconds", "steps_per_second", "git", "versions")
"""The columns of the results besides axes and measures."""

TAKEN = {
    *("cell", "status", "seed", "step", "error", "method", "setting", "images", "image_size"),
    *COLUMNS, *ABOUT, *EVALUATED,
}  # fmt: skip
"""Column names of the results and of the report's frames; no axis but `seed` may have one of these names."""

LAST = Path("checkpoints", "last.ckpt")
"""In a cell's folder, the checkpoint from which it resumes; at the end, the trained model."""

Axes = dict[str, Any]
"""The value of every axis of a cell, `seed` included."""


class RunFolder:
    """`runs/<grid>/`, the folder of a run. Hosts that share the run share this folder."""

    def __init__(self, path: Path, cells: Mapping[str, Axes] | None = None):
        """`cells` are the axes of each cell by id, in the grid's order; by default those in `grid.json`.

        Raises:
            UserError: `cells` are not given, and `path` is not the folder of a grid.
        """
        self.path = Path(path)
        self.pretrain = self.path / "pretrain"
        self._pretrained = self.pretrain / LAST
        self.cells = dict(cells) if cells is not None else self._cells_on_disk()

    def cell(self, cell: str) -> Path:
        return self.path / "cells" / cell

    def is_pretrained(self) -> bool:
        """Whether the pretraining is complete, and its checkpoint, from which all cells start, is not truncated."""
        return status_of(self.pretrain) == "complete" and is_zipfile(self._pretrained)

    def discard_torn_pretraining(self) -> None:
        """If a complete pretraining's checkpoint is truncated or missing, delete its result, so that it is repeated."""
        if status_of(self.pretrain) == "complete" and not is_zipfile(self._pretrained):
            (self.pretrain / "result.json").unlink()
            print(f"{self._pretrained}: torn or gone; the pretraining is done again", flush=True)

    def why_not_pretrained(self) -> str:
        """A message for the user if `is_pretrained` is false after the pretraining was run."""
        result = read_json(self.pretrain / "result.json") or {}
        reason = result.get("error") or (f"at step {result['step']}" if "step" in result else "it has no result")
        return f"pretraining {result.get('status', 'stopped')}: {reason}; see {self.pretrain / 'log.txt'}"

    def facts(self) -> dict[str, Any]:
        """The content of `grid.json`; empty if there is none."""
        return read_json(self.path / "grid.json") or {}

    def result(self, cell: str) -> dict[str, Any] | None:
        """The content of the cell's `result.json`; None if there is none."""
        return read_result(self.cell(cell))

    def status(self, cell: str) -> str:
        """One of `FINISHED`, `running` or `waiting`. Writes no files."""
        return status_of(self.cell(cell))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `results.json`: one flat row per cell, in the grid's order; running cells have current values."""
        return [self._row(cell, axes) for cell, axes in self.cells.items()]

    def write_results(self) -> None:
        """Write `results.json` and `results.csv` for people and pandas; the project does not read them."""
        with self.lock():
            rows = self.rows()
            write_atomically(self.path / "results.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
            table = io.StringIO()
            writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, "versions": json.dumps(row["versions"] or {})} for row in rows)
            write_atomically(self.path / "results.csv", table.getvalue())

    def lock(self) -> AcquireReturnProxy:
        """A context for writing files of the whole run; only one process at a time is in it, others wait."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return FileLock(self.path / ".lock").acquire()
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None

    def _row(self, cell: str, axes: Axes) -> dict[str, Any]:
        found = self.result(cell) or read_json(self.cell(cell) / "progress.json") or {}
        return {
            "cell": cell,
            "status": self.status(cell),
            **axes,
            "step": found.get("step"),
            **{column: found.get("measures", {}).get(column) for column in COLUMNS},
            **{key: found.get(key) for key in ABOUT},
        }

    def _cells_on_disk(self) -> dict[str, Axes]:
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder; expected the folder of a grid, such as runs/demo")
        entries = self.facts().get("cells")
        if entries is None:  # perhaps truncated; the cells' own files have the same information
            entries = filter(None, (read_json(file) for file in sorted(self.path.glob("cells/*/cell.json"))))
        try:
            cells = {str(entry["cell"]): dict(entry["axes"]) for entry in entries}
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{self.path / 'grid.json'}: each of 'cells' needs its 'cell' and 'axes'") from None
        if not cells:
            raise UserError(f"{self.path}: not the folder of a grid: it holds no grid.json")
        return cells


def tricks_of(cells: Iterable[Axes]) -> list[str]:
    """The axes that remove optimisation tricks: those whose first value is `on` and whose only other value is `off`."""
    found: dict[str, dict[str, None]] = {}
    for axes in cells:
        for axis, value in axes.items():
            found.setdefault(axis, {})[str(value)] = None
    return [axis for axis, values in found.items() if [*values] == ["on", "off"]]


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run to which a checkpoint belongs; None if it is not in a folder `checkpoints`."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of `result.json` in a cell's folder; None if it is missing or incomplete."""
    result = read_json(folder / "result.json") or {}
    whole = result.get("status") in FINISHED and isinstance(result.get("measures"), dict)
    return result if whole else None


def make_result(
    folder: Path, curves, status: str, step: int | None = None, seconds: float | None = None, error: str | None = None
) -> dict[str, Any]:
    """The content of `result.json` for the cell in `folder`.

    Args:
        curves: a mapping from tag to step to value, ordered by step.
        status: `complete`, `diverged` or `failed`.
        step: number of training steps done.
        seconds: training time of all sessions.
        error: why it failed, in one line.
    """
    cell = read_json(folder / "cell.json")
    result = {
        "cell": cell["cell"],
        "status": status,
        "axes": cell["axes"],
        "step": step,
        "measures": summarise(curves),
        "seconds": seconds,
        "steps_per_second": step / seconds if step and seconds else None,
        "git": revision(),
        "versions": versions(),
    }
    return result if error is None else result | {"error": error}


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write `result.json`, which marks the cell as done, so call this last."""
    write_atomically(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def status_of(folder: Path) -> str:
    """The status of the cell in `folder`: one of `FINISHED`, `running` or `waiting`."""
    result = read_result(folder)
    if result is not None and result["status"] in DONE:
        return result["status"]
    if is_locked(folder):
        return "running"
    return result["status"] if result else "waiting"
