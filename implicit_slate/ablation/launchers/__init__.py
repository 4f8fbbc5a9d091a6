"""What runs the cells of a grid, on this machine or elsewhere: each only has to start `implicit-slate cell DIR`.

A launcher is a module here with a function `launch(work: Work)`, and an entry in `LAUNCHERS`; see docs/clusters.md. It
checks its options, calls `work.begin()`, and runs what `work` holds. It returns None when all that has ended, or, where
it only hands the work over, a function that says whether some of it is still to come.
"""

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from implicit_slate.errors import UserError
from implicit_slate.run_folder import RunFolder

if TYPE_CHECKING:  # what it draws with is not needed for --help
    from implicit_slate.ablation.progress import ProgressDisplay

LAUNCHERS: dict[str, tuple[str, ...]] = {
    "local": ("workers", "cells_per_device", "dry_run"),
    "slurm": ("nodes", "time", "partition", "max_parallel", "slurm", "wait", "dry_run"),
    "none": ("nodes",),
}
"""The module of each launcher and the options of `implicit-slate ablate` that are for it."""


@dataclass(frozen=True)
class Work:
    """What is to be run. A cell that is done by the time it is started ends at once, so no launcher need look."""

    folder: RunFolder
    pretrain: Path | None
    """The cell that has to be complete before the others start; None if there is none, or it is complete."""
    cells: dict[str, Path]
    """The folders of the cells without a result, or with that of a failure, by their ids."""
    contents: dict[Path, dict[str, Any]]
    """What `cell.json` holds, or will hold, in each of these folders."""
    accelerators: int
    """Of this machine; 0 on the CPU."""
    options: argparse.Namespace
    """The arguments of `implicit-slate ablate`; `LAUNCHERS` says which of them a launcher may use."""
    begin: Callable[[], None]
    """Makes the run's folder and prepares every cell. To be called before any is started, once nothing is wrong."""
    display: "ProgressDisplay"

    @property
    def devices(self) -> int:
        """Processes of each cell on each node."""
        return self._first["devices"]

    @property
    def nodes(self) -> int:
        return nodes_of(self._first)

    @property
    def on_cpu(self) -> bool:
        """Whether the experiment asks for the CPU, wherever it runs."""
        return (self._first["config"].get("trainer") or {}).get("accelerator") == "cpu"

    @property
    def _first(self) -> dict[str, Any]:
        return self.contents[next(iter(self.cells.values()))]


def nodes_of(content: Mapping[str, Any]) -> int:
    """The nodes that the cell with this `cell.json` trains on."""
    return (content["config"].get("trainer") or {}).get("num_nodes", 1)


def launcher(options: argparse.Namespace) -> Callable[[Work], Callable[[], bool] | None]:
    """The function of the launcher that `options` name; `UserError` where they hold what is for others."""
    name = options.launcher
    for option in {option for those in LAUNCHERS.values() for option in those} - {*LAUNCHERS[name]}:
        if getattr(options, option):
            others = " or ".join(other for other, known in LAUNCHERS.items() if option in known)
            raise UserError(f"--{option.replace('_', '-')}: is for --launcher {others}, not for {name}")
    return importlib.import_module(f"implicit_slate.ablation.launchers.{name}").launch
