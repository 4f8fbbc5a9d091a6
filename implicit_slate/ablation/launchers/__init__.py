"""Launchers run the cells of a grid, on this machine or elsewhere, by starting `implicit-slate cell DIR` for each.

A launcher is a module here with a function `launch(work: Work)`, and an entry in `LAUNCHERS`; see docs/clusters.md. It
checks its options, calls `work.begin()`, and runs the cells of `work`. It returns None when all of them have ended. If
it only submits them elsewhere, it returns a function that says whether some have not ended yet.
"""

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from implicit_slate.errors import UserError
from implicit_slate.run_folder import RunFolder

if TYPE_CHECKING:  # not imported for --help, which does not need rich
    from implicit_slate.ablation.progress import ProgressDisplay

LAUNCHERS: dict[str, tuple[str, ...]] = {
    "local": ("workers", "cells_per_device", "dry_run"),
    "slurm": ("nodes", "time", "partition", "max_parallel", "slurm", "wait", "dry_run"),
    "none": ("nodes",),
}
"""Each launcher's module, and the options of `implicit-slate ablate` that apply to it."""


@dataclass(frozen=True)
class Work:
    """The cells to run. Starting a cell that is already done does no harm, so launchers need not check for that."""

    folder: RunFolder
    pretrain: Path | None
    """The cell that must be complete before the others start; None if there is none, or it is complete."""
    cells: dict[str, Path]
    """The folders of all cells that have no result or have failed, by id."""
    contents: dict[Path, dict[str, Any]]
    """The content of `cell.json` in each of these folders; `begin` writes it."""
    accelerators: int
    """Number of accelerators of this machine; 0 if cells run on the CPU."""
    options: argparse.Namespace
    """The arguments of `implicit-slate ablate`; `LAUNCHERS` says which of them a launcher may use."""
    begin: Callable[[], None]
    """Makes the run's folder and prepares every cell. Call it after all checks and before starting any cell."""
    display: "ProgressDisplay"

    @property
    def devices(self) -> int:
        """Number of processes of each cell on each node."""
        return self._first["devices"]

    @property
    def nodes(self) -> int:
        return nodes_of(self._first)

    @property
    def on_cpu(self) -> bool:
        """Whether the experiment itself selects the CPU."""
        return (self._first["config"].get("trainer") or {}).get("accelerator") == "cpu"

    @property
    def _first(self) -> dict[str, Any]:
        return self.contents[next(iter(self.cells.values()))]


def nodes_of(content: Mapping[str, Any]) -> int:
    """The number of nodes of the cell with this content of `cell.json`."""
    return (content["config"].get("trainer") or {}).get("num_nodes", 1)


def launcher(options: argparse.Namespace) -> Callable[[Work], Callable[[], bool] | None]:
    """The `launch` function of the chosen launcher. Raises `UserError` for options of other launchers."""
    name = options.launcher
    for option in {option for those in LAUNCHERS.values() for option in those} - {*LAUNCHERS[name]}:
        if getattr(options, option):
            others = " or ".join(other for other, known in LAUNCHERS.items() if option in known)
            raise UserError(f"--{option.replace('_', '-')}: is for --launcher {others}, not for {name}")
    return importlib.import_module(f"implicit_slate.ablation.launchers.{name}").launch
