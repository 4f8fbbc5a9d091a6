"""`implicit-slate tune`: search for the best learning rate, clip and warmup of each gradient mode, all in the same way.

NAME is an experiment file, or a grid of ablations.yaml: then each gradient mode is tuned with the settings of its first
cell. Repeat the command to continue. Several of them, on this or other hosts with one --storage, share the work.
"""

import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from implicit_slate.ablation.cell import max_steps, preparation, prepare
from implicit_slate.ablation.matrix import load_grid
from implicit_slate.errors import ArgumentParser, UserError, nearest, positive
from implicit_slate.files import check_writable, sqlite_url
from implicit_slate.run_folder import RunFolder
from implicit_slate.yaml_files import leaves, load_yaml, override

SILENT_SECONDS = 10.0
"""Report a storage that has not answered for this long."""


class Target(NamedTuple):
    """The configurations to tune."""

    name: str
    configs: dict[str, dict[str, Any]]
    """Configurations by gradient mode."""
    pretrain: dict[str, Any] | None = None
    checkpoint: str | None = None
    """The key of the configs that is set to the checkpoint of the pretraining."""


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 if done, 1 if the pretraining or several cells failed, 130 if stopped."""
    arguments = parser().parse_args(argv)
    target = find_target(arguments.name, arguments.file, arguments.modes)
    try:
        return _run(target, arguments.out or Path("runs") / f"tune-{target.name}", arguments)
    except KeyboardInterrupt:
        print(f"stopped; to continue: implicit-slate tune {shlex.join(argv)}", file=sys.stderr, flush=True)
        # An ordinary exit would wait for threads that wait for a server that does not answer. Trials whose results did
        # not reach the storage are started again, as after a kill.
        os._exit(130)


EXAMPLES = """implicit-slate tune tuning_small --trials 12
implicit-slate tune experiments/sprites.yaml --modes unrolled implicit "neumann(3)"
implicit-slate tune solvers --storage postgresql://USER@HOST/NAME"""


def parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate tune", __doc__, EXAMPLES)
    parser.add_argument("name", metavar="NAME", help="a grid's name in ablations.yaml, or an experiment file")
    parser.add_argument("--file", type=Path, default=Path("ablations.yaml"), help="file that defines the grids")
    parser.add_argument("--modes", nargs="+", metavar="MODE", help="default: the grid's, or unrolled and implicit")
    parser.add_argument("--trials", type=positive, default=40, help="trials per mode; default: 40")
    parser.add_argument(
        "--storage", help="postgresql://USER@HOST/NAME or sqlite:///FILE; default: a file in the folder of the run"
    )
    parser.add_argument("--out", type=Path, help="folder of the run; default: runs/tune-NAME")
    parser.add_argument("--devices", type=positive, default=1, help="processes (GPUs) per cell; default: 1")
    parser.add_argument("--workers", type=positive, help="cells at a time; default: as many as GPUs or cores allow")
    return parser


def find_target(name: str, file: Path, modes: Sequence[str] | None) -> Target:
    """The modes and their configurations. Raises `UserError` for an unknown grid or mode, or a missing experiment."""
    if name.endswith((".yaml", ".yml")):
        config = load_yaml(Path(name))
        modes = modes or ("unrolled", "implicit")
        return Target(Path(name).stem, {mode: override(config, {"model.gradient": mode}) for mode in modes})
    grid = load_grid(file, name)
    experiment, found = load_yaml(grid.experiment), {}
    for cell in grid.cells:
        config = override(experiment, cell.overrides)
        found.setdefault(str(dict(leaves(config)).get("model.gradient", "implicit")), config)
    for mode in modes or ():
        if mode not in found:
            raise UserError(f"{file}: grid {name!r} has no gradient mode {mode!r}{nearest(mode, found)}")
    pretrain = load_yaml(grid.pretrain) if grid.pretrain else None
    return Target(name, {mode: found[mode] for mode in modes or found}, pretrain, grid.checkpoint)


def _run(target: Target, folder: Path, arguments) -> int:
    from implicit_slate.ablation.pool import LocalPool, Resources, check, fork_server
    from implicit_slate.ablation.tuning.results import write_results
    from implicit_slate.ablation.tuning.search import CellFailed, Search
    from implicit_slate.ablation.tuning.storage import open_storage

    is_ours = (folder / "cells").is_dir() and not (folder / "grid.json").exists()
    if folder.exists() and not is_ours and any(folder.iterdir()):
        raise UserError(f"{folder}: holds other files, but no search; give another --out")
    origins = {f"{arguments.name}, gradient {mode}": config for mode, config in target.configs.items()}
    run = RunFolder(folder, {})
    with fork_server():
        if target.pretrain is not None:
            to_parse = {origin: override(c, {target.checkpoint: "last.ckpt"}) for origin, c in origins.items()}
            accelerators = check({f"{arguments.name}, 'pretrain'": target.pretrain}, to_parse)
        else:
            accelerators = check(origins, {})
        resources = Resources.share_out(arguments.workers, arguments.devices, accelerators)
        steps = max_steps(next(iter(target.configs.values())))
        search = Search(folder, target.configs, target.checkpoint, steps, arguments.devices, _say)
        storage = open_storage(arguments.storage) if arguments.storage else None
        check_writable(folder / "cells")
        storage = storage or open_storage(sqlite_url(folder / "tune.db"))
        if target.pretrain is not None:
            with run.lock():
                prepare(run.pretrain, preparation("pretrain", {}, target.pretrain, arguments.devices, None))
                run.discard_torn_pretraining()
            LocalPool(lambda name, event: _say(f"{event}: {name}")).run({"pretrain": run.pretrain}, resources)
            if not run.is_pretrained():
                print(run.why_not_pretrained(), file=sys.stderr)
                return 1

        def work() -> None:
            # The database in the folder has only this search, so names need no prefix, and the folder can be renamed.
            search.open(storage, f"{folder.resolve().name} " if arguments.storage else "")
            search.run(arguments.trials, resources)
            _say(f"report: {write_results(search)}")

        try:
            _watch(work, search)
        except CellFailed as error:
            print(f"tune: several trials failed, the last one so: {error}", file=sys.stderr)
            return 1
    return 0


def _watch(work, search) -> None:
    """Call `work` in a thread, so that Ctrl-C works while it waits for the storage, and report such waiting."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    threading.Thread(target=run, daemon=True).start()
    is_silent = False
    while not ended:
        time.sleep(0.2)
        if (time.monotonic() - search.heard > SILENT_SECONDS) != is_silent:
            is_silent = not is_silent
            _say("the storage does not answer; waiting for it" if is_silent else "the storage answers again")
    if ended[0] is not None:
        raise ended[0]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
