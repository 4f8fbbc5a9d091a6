"""Processes that end with the process that started them, however that one ends."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

CHECK_SECONDS = 0.5
PR_SET_PDEATHSIG = 1
PARENT = "IMPLICIT_SLATE_PARENT"
"""The environment variable in which a process tells those that it starts its own id."""


@contextlib.contextmanager
def expecting_children() -> Iterator[None]:
    """A context in which every process that this one starts, as a program of its own, watches this one.

    It is for these alone: what they start in turn inherits the variable, and has another parent.
    """
    outer = os.environ.get(PARENT)
    os.environ[PARENT] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[PARENT]
        os.environ.update({PARENT: outer} if outer else {})


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone. To be called first, before long imports.

    A process of `multiprocessing` watches the one that asked for it, also where a fork server lies between them. Any
    other watches the one that started it in `expecting_children`; a process that was started by hand watches nobody.
    """
    asked_for_by = multiprocessing.parent_process()
    if asked_for_by is not None:
        wait = asked_for_by.join
    elif (parent := int(os.environ.get(PARENT, os.getpid()))) != os.getpid():
        be_killed_with_parent()

        def wait() -> None:
            while os.getppid() == parent:
                time.sleep(CHECK_SECONDS)
    else:
        return
    threading.Thread(target=_end_after, args=(wait,), daemon=True).start()


def be_killed_with_parent() -> None:
    """Have the kernel, where that is Linux, kill this process when the thread that started it ends.

    It does so at once, also while an import lets no thread of ours run; but it cannot tell of a parent that is gone. So
    this ends the process where the one that expected it as a child is not, or no more, its parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)


def stop_as_by_ctrl_c() -> None:
    """Have SIGTERM and SIGHUP interrupt this process as Ctrl-C does; under `nohup` SIGHUP stays ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _end_after(wait) -> None:
    wait()
    os._exit(1)
