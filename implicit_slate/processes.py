"""How processes end: with the process that started them, however that ends; or because they are asked to."""

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
"""The environment variable in which a process passes its id to the processes that it starts."""
BUSY = 75
"""The exit status if the cell must be run again later, because another process is working on it or it was asked to stop
(a temporary failure in sysexits.h)."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that a cluster sends before it ends a job. During training `ResumePoint` saves a checkpoint first."""

_expecting = threading.RLock()


@contextlib.contextmanager
def expecting_children() -> Iterator[None]:
    """A context in which programs that this process starts watch this process.

    This holds only for direct children: their own children inherit the variable, but have another parent. The
    environment is that of all threads, so one thread at a time is in this context.
    """
    with _expecting:
        outer = os.environ.get(PARENT)
        os.environ[PARENT] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[PARENT]
            os.environ.update({PARENT: outer} if outer else {})


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone. Call this first, before long imports.

    A `multiprocessing` process watches the one that requested it, even if a fork server is between them. Other
    processes watch the one that started them in `expecting_children`; a process started by hand watches none.
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
    """On Linux, let the kernel kill this process when the thread that started it ends.

    The kernel does so at once, even while an import blocks our threads, but does not notice a parent that is already
    gone. So this function ends the process if the one that expects it as a child is not, or no longer, its parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)


def stop_as_by_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP interrupt this process like Ctrl-C; under `nohup` SIGHUP stays ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _end_after(wait) -> None:
    wait()
    os._exit(1)
