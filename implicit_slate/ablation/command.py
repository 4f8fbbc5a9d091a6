"""`implicit-slate ablate GRID`: run or resume a grid of `ablations.yaml`."""

import argparse
import json
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from implicit_slate.ablation.cell import check, preparation, prepare
from implicit_slate.ablation.experiment import Experiment
from implicit_slate.ablation.matrix import Grid, load_grid
from implicit_slate.errors import ArgumentParser, UserError, positive
from implicit_slate.files import read_json, write_atomically
from implicit_slate.run_folder import DONE, RunFolder, status_of
from implicit_slate.yaml_files import load_yaml

SOLVE = ("model.gradient", "model.solver", "model.tol", "model.slot_init")
"""Keys of an experiment that must fit together."""


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 all done, diverged cells included; 1 a cell or the pretraining failed; 130 stopped."""
    arguments = _parser().parse_args(argv)
    grid = load_grid(arguments.file, arguments.grid)
    folder = RunFolder(arguments.out or Path("runs") / grid.name, {cell.id: cell.axes for cell in grid.cells})
    preparations = _preparations(folder, grid, arguments.devices)
    _check_folder(folder, preparations)
    if arguments.list:
        _print_states(folder)
        return 0
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    try:
        return _run(grid, folder, preparations, arguments)
    except KeyboardInterrupt:
        print(f"stopped; to continue: implicit-slate ablate {shlex.join(argv)}", file=sys.stderr)
        return 130


def _parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate ablate", description=__doc__)
    parser.add_argument("grid", metavar="GRID", help="its name in ablations.yaml")
    parser.add_argument("--file", type=Path, default=Path("ablations.yaml"), help="where grids are defined")
    parser.add_argument("--out", type=Path, help="the folder of the run; default: runs/GRID")
    parser.add_argument("--devices", type=positive, help="processes (GPUs) of each cell; default: 1")
    parser.add_argument("--workers", type=positive, help="cells at a time; default: as there are GPUs or cores for")
    parser.add_argument("--list", action="store_true", help="print the cells and their state, and run nothing")
    return parser


def _preparations(folder: RunFolder, grid: Grid, devices: int | None) -> dict[Path, dict[str, Any]]:
    """The content of `cell.json` of the pretraining and of every cell, by their folders.

    The number of devices of a cell changes its batch, so it is of its configuration; None takes that of the run.
    """
    if devices is None:
        earlier = (read_json(path / "cell.json") for path in map(folder.cell, folder.cells))
        devices = next((cell["devices"] for cell in earlier if cell), 1)
    found = {}
    if grid.pretrain:
        experiment = Experiment(grid.pretrain.experiment, {}, str(grid.pretrain.experiment))
        found[folder.pretrain] = preparation("pretrain", {}, experiment, devices, None)
    checkpoint = grid.pretrain and grid.pretrain.checkpoint
    for cell in grid.cells:
        experiment = Experiment(grid.experiment, cell.overrides, f"{grid.experiment}, cell {cell.id}")
        found[folder.cell(cell.id)] = preparation(cell.id, cell.axes, experiment, devices, checkpoint)
    return found


def _check_folder(folder: RunFolder, preparations: dict[Path, dict[str, Any]]) -> None:
    """`UserError` if the folder holds another grid, this grid in another configuration, or something else.

    A run may be given more cells, as by more seeds in `ablations.yaml`.
    """
    path = folder.path
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder")
    if not (path / "grid.json").exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(f"{path}: holds other files and no run of a grid; give another --out")
    for entry in folder.facts().get("cells", []):
        if entry["cell"] not in folder.cells:
            raise UserError(f"{path}: holds a run with other cells (as {entry['cell']}); give another --out")
    for cell, content in preparations.items():
        check(cell, content)


def _begin(folder: RunFolder, grid: Grid, preparations: dict[Path, dict[str, Any]]) -> None:
    """Make the folder with `grid.json` and every cell prepared; `UserError` as for `_check_folder`."""
    cells = [{"cell": cell.id, "axes": cell.axes} for cell in grid.cells]
    facts = {"grid": grid.name, "description": grid.description, "cells": cells}
    with folder.lock():
        _check_folder(folder, preparations)
        write_atomically(folder.path / "grid.json", json.dumps(facts, indent=1, default=str) + "\n")
        for cell, content in preparations.items():
            prepare(cell, content)


def _print_states(folder: RunFolder) -> None:
    rows = folder.rows()
    width = max(len(row["cell"]) for row in rows)
    for row in rows:
        print(f"{row['cell']:<{width}}  {row['status']}" + (f" at step {row['step']}" if row["step"] else ""))
    _print_counts(rows)


def _print_counts(rows: Sequence[dict[str, Any]]) -> None:
    counts = Counter(row["status"] for row in rows)
    print(f"{len(rows)} cells: {', '.join(f'{count} {status}' for status, count in counts.items())}")


def _run(grid: Grid, folder: RunFolder, preparations: dict[Path, dict[str, Any]], arguments: argparse.Namespace) -> int:
    if not all(folder.status(cell) in DONE for cell in folder.cells):
        from implicit_slate.ablation.launchers.local import LocalPool, Resources
        from implicit_slate.ablation.progress import ProgressDisplay

        print(f"{grid.name}: {len(grid.cells)} cells in {folder.path}; checking them", flush=True)
        display = ProgressDisplay(folder)

        def report(name: str, event: str) -> None:
            display.event(name, event)
            folder.write_results()

        with LocalPool(report) as pool:
            machine = pool.check(*_to_check(grid, arguments.file))
            devices = next(iter(preparations.values()))["devices"]
            resources = Resources.share_out(arguments.workers, devices, machine.accelerators)
            _begin(folder, grid, preparations)
            display.max_steps = machine.max_steps
            with display:
                if grid.pretrain:
                    pool.run({"pretrain": folder.pretrain}, resources)
                    if status_of(folder.pretrain) != "complete":
                        return _pretraining_failed(folder)
                pool.run({cell: folder.cell(cell) for cell in folder.cells}, resources)
    return _conclude(folder)


def _pretraining_failed(folder: RunFolder) -> int:
    result = read_json(folder.pretrain / "result.json") or {}
    reason = result.get("error") or f"at step {result.get('step')}"
    log = folder.pretrain / "log.txt"
    print(f"pretraining {result.get('status', 'stopped')}: {reason}; see {log}", file=sys.stderr)
    return 1


def _conclude(folder: RunFolder) -> int:
    from implicit_slate.ablation.study import add_trials
    from implicit_slate.report import write_report

    folder.write_results()
    add_trials(folder)
    rows = folder.rows()
    _print_counts(rows)
    failed = [folder.cell(row["cell"]) for row in rows if row["status"] == "failed"]
    for cell in failed:
        print(f"failed: {cell.name}, see {cell / 'log.txt'}", file=sys.stderr)
    print(f"report: {write_report(folder.path)}")
    return 1 if failed else 0


def _to_check(grid: Grid, file: Path) -> tuple[list[Experiment], list[Experiment]]:
    """Every experiment file, every value of an axis and every combination of solver and gradient once,
    instead of every cell; see `configure.check`."""
    origin = f"{grid.experiment}" + (f", with 'overrides' of grid {grid.name!r} in {file}" if grid.overrides else "")
    built, parsed = [Experiment(grid.experiment, grid.overrides, origin)], []
    if grid.pretrain:
        built.append(Experiment(grid.pretrain.experiment, {}, str(grid.pretrain.experiment)))
        checkpoint = {**grid.overrides, grid.pretrain.checkpoint: "last.ckpt"}
        parsed.append(Experiment(grid.experiment, checkpoint, f"{file}: grid {grid.name!r}, 'pretrain'"))
    axes = load_yaml(file)["axes"]
    values = dict.fromkeys((axis, value) for cell in grid.cells for axis, value in cell.axes.items() if axis != "seed")
    for axis, value in values:
        if overrides := axes[axis][value]:
            settings = {**grid.overrides, **overrides}
            built.append(Experiment(grid.experiment, settings, f"{file}: axis {axis!r}, value {value!r}"))
    # Gradient modes and solvers do not all go together, so axes that are right by themselves may not be.
    combinations = {}
    for cell in grid.cells:
        solve = {key: value for key, value in cell.overrides.items() if key in SOLVE}
        combinations.setdefault(tuple(solve.items()), f"{file}: grid {grid.name!r}, cell {cell.id}")
    seen = [experiment.overrides for experiment in built]
    for solve, where in combinations.items():
        if (settings := {**grid.overrides, **dict(solve)}) not in seen:
            built.append(Experiment(grid.experiment, settings, where))
    return built, parsed
