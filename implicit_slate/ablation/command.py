"""`implicit-slate ablate GRID`: run a grid of `ablations.yaml`, or go on with it."""

import argparse
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from implicit_slate.ablation.experiment import Experiment
from implicit_slate.ablation.matrix import Grid, load_grid
from implicit_slate.ablation.run_folder import RunFolder
from implicit_slate.errors import ArgumentParser, positive
from implicit_slate.yaml_files import load_yaml

WAY_TO_SOLVE = ("model.gradient", "model.solver", "model.tol", "model.slot_init")
"""Keys of an experiment that must fit together."""


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 all done, diverged cells included; 1 a cell or the pretraining failed; 130 stopped."""
    arguments = _parser().parse_args(argv)
    grid = load_grid(arguments.file, arguments.grid)
    folder = RunFolder(arguments.out or Path("runs") / grid.name, grid.cells)
    if arguments.list:
        folder.check(grid)
        _print_states(folder)
        return 0
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    try:
        return _run(grid, folder, arguments)
    except KeyboardInterrupt:
        print(f"stopped; to continue: implicit-slate ablate {shlex.join(argv)}", file=sys.stderr)
        return 130


def _parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate ablate", description=__doc__)
    parser.add_argument("grid", metavar="GRID", help="its name in ablations.yaml")
    parser.add_argument("--file", type=Path, default=Path("ablations.yaml"), help="where grids are defined")
    parser.add_argument("--out", type=Path, help="the folder of the run; default: runs/GRID")
    parser.add_argument("--devices", type=positive, default=1, help="processes (GPUs) of each cell")
    parser.add_argument("--workers", type=positive, help="cells at a time; default: as there are GPUs or cores for")
    parser.add_argument("--storage", help="database URL of the Optuna study; default: SQLite in the run's folder")
    parser.add_argument("--list", action="store_true", help="print the cells and their state, and run nothing")
    return parser


def _print_states(folder: RunFolder) -> None:
    rows = folder.rows()
    width = max(len(row["cell"]) for row in rows)
    for row in rows:
        print(f"{row['cell']:<{width}}  {row['status']}" + (f" at step {row['step']}" if row["step"] else ""))
    counts = Counter(row["status"] for row in rows)
    print(f"{len(rows)} cells: {', '.join(f'{count} {status}' for status, count in counts.items())}")


def _run(grid: Grid, folder: RunFolder, arguments: argparse.Namespace) -> int:
    from implicit_slate.ablation.forks import ask, start_forkserver
    from implicit_slate.ablation.progress import ProgressDisplay
    from implicit_slate.ablation.study import Queue, check_storage
    from implicit_slate.ablation.workers import Resources, Workers

    folder.check(grid, arguments.devices)
    if arguments.storage is not None:
        check_storage(arguments.storage)
    if not all((folder.result(cell) or {}).get("status") in ("complete", "diverged") for cell in folder.cells):
        print(f"{grid.name}: {len(grid.cells)} cells in {folder.path}; checking them", flush=True)
        start_forkserver()
        machine = ask("configure.check", *_to_check(grid, arguments.file))
        resources = Resources.share_out(arguments.workers, arguments.devices, machine.accelerators)
        study = folder.begin(grid, arguments.devices)
        folder.forget_failures()
        queue = Queue(folder, study, arguments.storage)
        with ProgressDisplay(folder, machine.max_steps) as display:
            workers = Workers(folder, resources, lambda cell: _experiment(grid, folder, cell), display.event)
            try:
                if grid.pretrain and not _pretrain(grid, folder, workers):
                    return 1
                workers.run(queue)
            finally:
                workers.stop()
                queue.close()
    folder.write_results()
    return _conclude(folder)


def _experiment(grid: Grid, folder: RunFolder, cell_id: str) -> Experiment:
    overrides = dict(folder.cells[cell_id].overrides)
    if grid.pretrain:
        overrides[grid.pretrain.checkpoint] = str(folder.pretrain / "checkpoints" / "last.ckpt")
    return Experiment(grid.experiment, overrides, f"{grid.experiment}, cell {cell_id}")


def _to_check(grid: Grid, file: Path) -> tuple[list[Experiment], list[Experiment]]:
    """Every experiment file, every value of an axis and every way to solve once, instead of every cell; see
    `configure.check`."""
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
    ways = {}
    for cell in grid.cells:
        way = {key: value for key, value in cell.overrides.items() if key in WAY_TO_SOLVE}
        ways.setdefault(tuple(way.items()), f"{file}: grid {grid.name!r}, cell {cell.id}")
    seen = [experiment.overrides for experiment in built]
    for way, where in ways.items():
        if (settings := {**grid.overrides, **dict(way)}) not in seen:
            built.append(Experiment(grid.experiment, settings, where))
    return built, parsed


def _pretrain(grid: Grid, folder: RunFolder, workers) -> bool:
    experiment = Experiment(grid.pretrain.experiment, {}, str(grid.pretrain.experiment))
    result = workers.run_pretraining({}, experiment)
    if result["status"] == "complete":
        return True
    reason = result.get("error") or f"at step {result.get('step')}"
    print(f"pretraining {result['status']}: {reason}; see {folder.pretrain / 'log.txt'}", file=sys.stderr)
    return False


def _conclude(folder: RunFolder) -> int:
    from implicit_slate.ablation.report import write_report

    rows = folder.rows()
    counts = Counter(row["status"] for row in rows)
    print(f"{len(rows)} cells: {', '.join(f'{count} {status}' for status, count in counts.items())}")
    for row in rows:
        if row["status"] == "failed":
            print(f"failed: {row['cell']}, see {folder.cell(row['cell']) / 'log.txt'}", file=sys.stderr)
    print(f"report: {write_report(folder.path)}")
    return 1 if counts["failed"] else 0
