"""Processes that start quickly: forks of one process that has imported everything a cell needs.

That process imports for seconds, once, and never trains, so it has no threads and no accelerator's context to lose.
This module is imported by every fork, so it must stay light.
"""

import importlib
import os
import signal
import traceback
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from implicit_slate.ablation.run_folder import CellLock
from implicit_slate.errors import UserError

_context = get_context("forkserver")


def start_forkserver() -> None:
    """Begin importing what cells need, in a process of its own. To be called from the main thread."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for us, who then end the cells
    _context.set_forkserver_preload(["implicit_slate.ablation.cell", "implicit_slate.ablation.quick_exit"])
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, previous)


def ask(function: str, *arguments) -> Any:
    """What a function of this package (`"configure.check"`) returns, called in a fork that has imported everything."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_answer, args=(theirs, function, *arguments))
    process.start()
    theirs.close()
    try:
        kind, content = ours.recv()
    except EOFError:
        kind, content = "error", f"the process for {function} died"
    finally:
        process.kill()
        process.join()
    if kind == "user error":
        raise UserError(content)
    if kind == "error":
        raise RuntimeError(content)
    return content


def fork_cell(folder: Path, lock: CellLock, threads: int | None, visible_devices: str | None) -> BaseProcess:
    """Start `cell.run_forked` on a prepared cell."""
    process = _context.Process(target=_run_cell, args=(folder, lock, threads, visible_devices))
    process.start()
    return process


def _answer(connection, function: str, *arguments) -> None:
    with open(os.devnull, "w") as quiet:  # Lightning talks
        os.dup2(quiet.fileno(), 1)
        os.dup2(quiet.fileno(), 2)
    module, name = function.split(".")
    try:
        value = getattr(importlib.import_module(f"implicit_slate.ablation.{module}"), name)(*arguments)
        connection.send(("value", value))
    except UserError as error:
        connection.send(("user error", str(error)))
    except BaseException:
        connection.send(("error", traceback.format_exc()))


def _run_cell(*arguments) -> None:
    from implicit_slate.ablation import cell

    cell.run_forked(*arguments)
