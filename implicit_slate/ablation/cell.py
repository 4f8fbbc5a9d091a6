"""`implicit-slate cell DIR`: run or resume the prepared cell in DIR.

If the cell is done, the command ends at once. If another process is working on it, it says so and ends. If it was
started before, it resumes. All launchers run cells with this command, which may be repeated any number of times.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from implicit_slate.errors import ArgumentParser, UserError
from implicit_slate.files import read_json, sweep, write_atomically
from implicit_slate.locks import holder, try_lock
from implicit_slate.processes import BUSY, STOP_SIGNALS, end_with_parent
from implicit_slate.run_folder import DONE, read_result
from implicit_slate.yaml_files import leaves


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 if it is done (complete or diverged), 1 if it failed, 75 if another process is working on it or it
    was stopped."""
    end_with_parent()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(BUSY))
    return run(parser().parse_args(argv).dir)


def parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate cell", __doc__, "implicit-slate cell runs/demo/cells/ID")
    parser.add_argument("dir", type=Path, metavar="DIR", help="the folder of a cell, such as runs/demo/cells/…")
    return parser


def preparation(
    cell: str, axes: Mapping[str, Any], config: Mapping[str, Any], devices: int, checkpoint: str | None
) -> dict[str, Any]:
    """The content of `cell.json`, which is all that `run` needs.

    Args:
        config: in LightningCLI's form; missing keys get their defaults when the cell runs.
        devices: number of processes of the cell.
        checkpoint: dotted key of the config that is set to the checkpoint of the run's pretraining; None for none.
    """
    content = {"cell": cell, "axes": axes, "devices": devices, "checkpoint": checkpoint, "config": config}
    return json.loads(json.dumps(content, default=str))


def max_steps(config: Mapping[str, Any]) -> int:
    """The `max_steps` of a config, where it may be a quoted number; below 1 if another setting ends training."""
    return int((config.get("trainer") or {}).get("max_steps") or -1)


def prepare(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `cell.json` unless it exists; raise `UserError` if the folder has a cell of another configuration."""
    check(folder, content)
    if read_json(folder / "cell.json") is None:
        write_atomically(folder / "cell.json", json.dumps(content, indent=1) + "\n")


def check(folder: Path, content: Mapping[str, Any]) -> None:
    """Raise `UserError` if `folder` has a prepared cell that differs from `content`; names the first different key."""
    found = read_json(folder / "cell.json")
    if found is not None:
        old, new, absent = dict(leaves(found)), dict(leaves(content)), object()
        for key in [*new, *old]:
            if old.get(key, absent) != new.get(key, absent):
                raise UserError(f"{folder}: holds a different cell ({key} differs); give another --out")


def run(folder: Path) -> int:
    """Run the prepared cell in `folder`; returns the exit status of `main`."""
    if read_json(folder / "cell.json") is None:
        raise UserError(f"{folder}: cell.json is missing or truncated; `implicit-slate ablate` writes it")
    if is_done(folder):
        return 0
    if int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or 0) > 0:
        return _train(folder)  # not the first process of a cell on several devices; only the first one takes the lock
    lock = try_lock(folder)
    if lock is None:
        print(f"{folder}: {holder(folder)} works on this cell", file=sys.stderr)
        return BUSY
    with lock:
        if is_done(folder):  # it may have ended before we had the lock
            return 0
        sweep(folder)
        (folder / "result.json").unlink(missing_ok=True)  # that of an earlier failure
        return _train(folder)


def _train(folder: Path) -> int:
    from implicit_slate.ablation.train import train  # takes seconds to import

    return int(train(folder) == "failed")


def is_done(folder: Path) -> bool:
    result = read_result(folder)
    return result is not None and result["status"] in DONE
