"""`implicit-slate ablate GRID`: run or resume a grid of `ablations.yaml`."""

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from implicit_slate.ablation.cell import check, max_steps, preparation, prepare
from implicit_slate.ablation.launchers import LAUNCHERS, Work, launcher, nodes_of
from implicit_slate.ablation.matrix import Grid, load_grid
from implicit_slate.ablation.tensorboard import link_cells
from implicit_slate.errors import ArgumentParser, UserError, positive
from implicit_slate.files import read_json, sweep, write_atomically
from implicit_slate.run_folder import DONE, FINISHED, RunFolder
from implicit_slate.yaml_files import load_yaml, override

POLL_SECONDS = 5.0

Preparations = dict[Path, dict[str, Any]]
"""The content of `cell.json` of every cell and of the pretraining, if there is one, by folder."""


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 if all cells are complete or diverged, 1 if a cell or the pretraining failed or was cancelled, 130
    if stopped."""
    arguments = parser().parse_args(argv)
    grid = load_grid(arguments.file, arguments.grid)
    folder = RunFolder(arguments.out or Path("runs") / grid.name, {cell.id: cell.axes for cell in grid.cells})
    preparations = _preparations(folder, grid, arguments.devices, arguments.nodes)
    _check_folder(folder, preparations)
    if arguments.list:
        _print_states(folder, arguments.launcher)
        return 0
    try:
        return _run(grid, folder, preparations, arguments)
    except KeyboardInterrupt:
        print(f"stopped; to continue: implicit-slate ablate {shlex.join(argv)}", file=sys.stderr)
        return 130


EXAMPLES = """implicit-slate ablate demo
implicit-slate ablate tricks --list
implicit-slate ablate tricks --devices 2 --workers 4
implicit-slate ablate tricks --dry-run
implicit-slate ablate tricks --launcher slurm --time 8:00:00 --partition gpu --slurm cpus-per-task=8"""


def parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate ablate", __doc__, EXAMPLES)
    parser.add_argument("grid", metavar="GRID", help="name of a grid in ablations.yaml").completer = _grids
    parser.add_argument("--file", type=Path, default=Path("ablations.yaml"), help="file that defines the grids")
    parser.add_argument("--out", type=Path, help="folder of the run; default: runs/GRID")
    parser.add_argument("--devices", type=positive, help="processes (GPUs) per cell on each node; default: 1")
    parser.add_argument("--list", action="store_true", help="print the cells and their state, and run nothing")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, with hours estimated by a probe")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local", help="see docs/clusters.md; default: local")
    local = parser.add_argument_group("--launcher local: this machine")
    local.add_argument("--workers", type=positive, help="cells at a time; default: as many as GPUs or cores allow")
    local.add_argument(
        "--cells-per-device",
        type=positive,
        help="cells that share a GPU; more gain little, see docs/clusters.md; default: 1",
    )
    slurm = parser.add_argument_group("--launcher slurm: batch jobs, one task per cell")
    slurm.add_argument("--nodes", type=positive, help="nodes per cell; default: 1")
    slurm.add_argument("--time", help="time limit of each job, such as 8:00:00; a cell that reaches it is continued")
    slurm.add_argument("--partition")
    slurm.add_argument("--max-parallel", type=positive, help="cells at a time; default: no limit")
    slurm.add_argument(
        "--slurm", action="append", metavar="KEY=VALUE", help="any option of sbatch, overriding ours; may be repeated"
    )
    slurm.add_argument("--wait", action="store_true", help="show progress until all jobs have ended")
    return parser


def _grids(parsed_args: argparse.Namespace, **_) -> list[str]:
    """The names of grids for completion in the shell."""
    return [*load_yaml(parsed_args.file).get("grids", {})] if parsed_args.file.exists() else []


def _preparations(folder: RunFolder, grid: Grid, devices: int | None, nodes: int | None = None) -> Preparations:
    """`devices` and `nodes` default to those of an existing run. They are part of a cell's configuration, because they
    change its batch."""
    earlier = next(filter(None, (read_json(path / "cell.json") for path in map(folder.cell, folder.cells))), None)
    if earlier:
        devices, nodes = devices or earlier["devices"], nodes or nodes_of(earlier)
    devices, nodes = devices or 1, nodes or 1
    several = {"trainer.num_nodes": nodes} if nodes > 1 else {}
    found = {}
    if grid.pretrain:
        config = override(load_yaml(grid.pretrain), several)
        found[folder.pretrain] = preparation("pretrain", {}, config, devices, None)
    experiment = load_yaml(grid.experiment)
    for cell in grid.cells:
        config = override(experiment, {**cell.overrides, **several})
        found[folder.cell(cell.id)] = preparation(cell.id, cell.axes, config, devices, grid.checkpoint)
    return found


def _check_folder(folder: RunFolder, preparations: Preparations) -> None:
    """Raise `UserError` if the folder has another grid, this grid with another configuration, or other files.

    Adding cells to a run is allowed, for example by more seeds in `ablations.yaml`.
    """
    path = folder.path
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder")
    begun = [{"cell": file.parent.name} for file in path.glob("cells/*/cell.json")]
    is_run = begun or (path / "grid.json").exists()
    if not is_run and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(f"{path}: holds other files, but no run of a grid; give another --out")
    for entry in folder.facts().get("cells", begun):
        if entry["cell"] not in folder.cells:
            raise UserError(f"{path}: holds a run with other cells (such as {entry['cell']}); give another --out")
    for cell, content in preparations.items():
        check(cell, content)


def _begin(folder: RunFolder, grid: Grid, preparations: Preparations) -> None:
    """Make the folder, write `grid.json`, and prepare every cell. Raises `UserError` as `_check_folder`."""
    cells = [{"cell": cell.id, "axes": cell.axes} for cell in grid.cells]
    facts = {"grid": grid.name, "description": grid.description, "cells": cells}
    with folder.lock():
        _check_folder(folder, preparations)
        sweep(folder.path, below=False)
        write_atomically(folder.path / "grid.json", json.dumps(facts, indent=1, default=str) + "\n")
        for cell, content in preparations.items():
            prepare(cell, content)
        if grid.pretrain:
            folder.discard_torn_pretraining()
        link_cells(folder)


def _print_states(folder: RunFolder, launcher: str) -> None:
    rows = folder.rows()
    if launcher == "slurm":
        from implicit_slate.ablation.launchers.slurm import queued

        jobs = queued(folder.path)
        for row in rows:
            if row["status"] == "waiting" and (job := jobs.get(folder.cell(row["cell"]).resolve())):
                row["status"] = f"queued as job {job}"
    width = max(len(row["cell"]) for row in rows)
    for row in rows:
        print(f"{row['cell']:<{width}}  {row['status']}" + (f" at step {row['step']}" if row["step"] else ""))
    _print_counts(rows)


def _print_counts(rows: Sequence[dict[str, Any]]) -> None:
    counts = Counter(row["status"] for row in rows)
    print(f"{len(rows)} cells: {', '.join(f'{count} {status}' for status, count in counts.items())}")


def _run(grid: Grid, folder: RunFolder, preparations: Preparations, arguments: argparse.Namespace) -> int:
    launch = launcher(arguments)
    cells = {cell: folder.cell(cell) for cell in folder.cells if folder.status(cell) not in DONE}
    if not cells:
        return _print_counts(folder.rows()) or 0 if arguments.dry_run else _conclude(folder)
    from implicit_slate.ablation.pool import check, fork_server
    from implicit_slate.ablation.progress import ProgressDisplay

    print(f"{grid.name}: {len(grid.cells)} cells in {folder.path}; checking them", flush=True)
    with fork_server():
        accelerators = check(*_to_check(grid, arguments, preparations))
        steps = {str(content["cell"]): max_steps(content["config"]) for content in preparations.values()}
        display = ProgressDisplay(folder, steps)
        is_open = launch(
            Work(
                folder,
                folder.pretrain if grid.pretrain and not folder.is_pretrained() else None,
                cells,
                preparations,
                accelerators,
                arguments,
                lambda: _begin(folder, grid, preparations),
                display,
            )
        )
    if arguments.dry_run or (is_open and not arguments.wait):
        return 0
    if is_open:
        print("Ctrl-C ends the waiting, and not the jobs", flush=True)
        with display.shown():
            while is_open():
                time.sleep(POLL_SECONDS)
    if grid.pretrain and not folder.is_pretrained():
        print(folder.why_not_pretrained(), file=sys.stderr)
        return 1
    return _conclude(folder)


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
    left = sum(row["status"] not in FINISHED for row in rows)
    if left:  # for example because their jobs were cancelled
        print(f"{left} cells have no result; give the command again", file=sys.stderr)
    return 1 if failed or left else 0


def _to_check(
    grid: Grid, arguments: argparse.Namespace, preparations: Preparations
) -> tuple[dict[str, dict], dict[str, dict]]:
    """The arguments of `configure.check`: the experiment files, and the first of all cells that differ only by seed."""
    file = arguments.file
    where = f"{file}: grid {grid.name!r}"
    experiment = override(load_yaml(grid.experiment), grid.overrides)
    origin = f"{grid.experiment}" + (f", with 'overrides' of grid {grid.name!r} in {file}" if grid.overrides else "")
    configs, to_parse = {origin: experiment}, {}
    if grid.pretrain:
        to_parse[f"{where}, 'pretrain'"] = override(experiment, {grid.checkpoint: "last.ckpt"})
    for content in preparations.values():
        config = content["config"]
        if all(config | {"seed_everything": 0} != other | {"seed_everything": 0} for other in configs.values()):
            configs[f"{where}, cell {content['cell']}" if content["axes"] else str(grid.pretrain)] = config
    if arguments.launcher != "local":  # this machine may not have the devices on which the cells will run
        for those in (configs, to_parse):
            those.update({name: override(config, {"trainer.accelerator": "auto"}) for name, config in those.items()})
    return configs, to_parse
