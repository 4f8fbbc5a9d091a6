"""Run cells on this machine: several at a time, each in a fresh process.

All processes are forked from a server that has imported everything, because importing takes about ten seconds and
forking takes almost none. The server never trains, so it has no threads or accelerator contexts that forking would
break. For a cell on several devices, the forked process runs the command `cell`, which Lightning repeats for every
device, and waits for it.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from data_modules.processes import num_cores
from implicit_slate.ablation import cell
from implicit_slate.errors import UserError
from implicit_slate.files import read_json
from implicit_slate.locks import is_locked
from implicit_slate.processes import BUSY, end_with_parent, expecting_children
from implicit_slate.run_folder import DONE, LAST, make_result, read_result, write_result

POLL_SECONDS = 1.0
MOST_TRIES = 3
"""A cell counts as failed when its process has died this often without getting further, for example out of memory."""

_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Resources:
    """How this machine is shared: every worker has its own threads, and its own devices or a share of them."""

    workers: int
    devices: int
    """Number of processes of each cell."""
    accelerators: tuple[str, ...]
    """The devices, as named in CUDA_VISIBLE_DEVICES; empty on a CPU."""
    cores: int

    @classmethod
    def share_out(
        cls, workers: int | None, devices: int, accelerators: int, cells_per_device: int | None = None
    ) -> "Resources":
        """`workers` defaults to the largest number that fits this machine; raises `UserError` for more than that."""
        cores = num_cores()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(accelerators)]
        names = tuple(names[:accelerators])
        room, what = (len(names), "devices") if names else (cores, "cores")
        if devices > room:
            raise UserError(f"--devices {devices}: this machine has {room} {what}")
        if cells_per_device and not names:
            raise UserError(f"--cells-per-device {cells_per_device}: is for GPUs, and the cells run on the CPU here")
        most = room // devices * (cells_per_device or 1)
        if (workers or most) > most:
            more = "; --cells-per-device lets cells share one" if names else ""
            raise UserError(f"--workers {workers}: there are {room} {what}, enough for {most} cells at a time{more}")
        return cls(workers or most, devices, names, cores)

    @property
    def threads(self) -> int:
        """CPU threads of each process; one if it trains on a GPU, see `host.leave_threads`."""
        return 1 if self.accelerators else max(1, self.cores // (self.workers * self.devices))

    def environment(self, worker: int) -> dict[str, str]:
        """The environment variables that set a worker's share."""
        share = {"OMP_NUM_THREADS": str(self.threads)}
        if self.accelerators:
            groups = len(self.accelerators) // self.devices
            first = worker % groups * self.devices
            share["CUDA_VISIBLE_DEVICES"] = ",".join(self.accelerators[first : first + self.devices])
        return share

    def __str__(self) -> str:
        shared = -(-self.workers * self.devices // (len(self.accelerators) or self.cores))
        where = f"of {len(self.accelerators)} GPUs, {shared} on each" if self.accelerators else "on the CPU"
        threads = f"{self.threads} {'thread' if self.threads == 1 else 'threads'}"
        processes = f"{self.devices} {'process' if self.devices == 1 else 'processes'}"
        return f"{self.workers} at a time {where}; {processes} each, with {threads}"


@contextlib.contextmanager
def fork_server() -> Iterator[None]:
    """A context with a running fork server. On exit it kills the server, which would take seconds to end by itself, and
    all its processes: running cells lose what came after their last checkpoint."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # children inherit this, so Ctrl-C reaches only us
    _context.set_forkserver_preload(["implicit_slate.ablation.server", "implicit_slate.ablation.train"])
    try:
        with expecting_children():  # we may be killed while the server starts
            forkserver.ensure_running()  # the server starts importing
    finally:
        signal.signal(signal.SIGINT, previous)
    try:
        yield
    finally:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(process.cmdline()):  # multiprocessing's own; it ends after us
                    process.kill()


def check(configs: Mapping[str, dict], to_parse: Mapping[str, dict]) -> int:
    """`configure.check` in a forked process, with the same `UserError`."""
    for _ in range(MOST_TRIES):
        pool = ProcessPoolExecutor(1, mp_context=_context, initializer=_begin, initargs=(os.devnull,))
        try:
            with expecting_children():  # if the server was killed, this starts another
                checked = pool.submit(_check, configs, to_parse)
            return checked.result()
        except (BrokenProcessPool, EOFError, ConnectionError):  # it or the server was killed (out of memory?)
            time.sleep(POLL_SECONDS)
        finally:
            pool.shutdown(wait=False)
    raise UserError(f"the process that checks the experiments was killed {MOST_TRIES} times (out of memory?)")


class Tries:
    """Counts how often a cell's process has ended since the cell last got further."""

    def __init__(self) -> None:
        self._count = self._furthest = 0

    def add(self, folder: Path) -> int:
        """Count the end of a process of the cell in `folder`; 1 if it reached a new step."""
        step = (read_json(folder / "progress.json") or {}).get("step", 0)
        self._count = 1 if step > self._furthest else self._count + 1
        self._furthest = max(step, self._furthest)
        return self._count


class LocalPool:
    """Runs prepared cells, several at a time."""

    def __init__(self, report: Callable[[str, str], None]):
        """`report(name, event)` is called with each cell's events: `started`, `resumed`, `interrupted`, `stopped, or
        taken by another process`, or its final status."""
        self.report = report
        self._tries: defaultdict[str, Tries] = defaultdict(Tries)
        self._again: set[str] = set()

    def run(self, folders: Mapping[str, Path], resources: Resources) -> None:
        """Run the prepared cells in `folders`, by name; returns when all have results, from this or another process.

        A failed cell is tried once; cells on several devices, and cells that die without a result, until they have
        ended `MOST_TRIES` times without getting further.
        Raises `UserError` if a cell's folder is gone.
        """
        # Cells that failed in an earlier start are run once more: the user may have fixed the cause.
        self._again = {name for name, folder in folders.items() if read_result(folder)}
        idle = list(range(resources.workers))
        running: dict[str, tuple[int, BaseProcess]] = {}
        while True:
            waiting = [name for name in folders if name not in running and not self._is_over(name, folders[name])]
            if not waiting and not running:
                return
            for name in sorted(waiting, key=lambda name: not _is_begun(folders[name])):
                if idle and not is_locked(folders[name]):
                    worker = idle.pop(0)
                    self.report(name, "resumed" if _is_begun(folders[name]) else "started")
                    running[name] = worker, start(folders[name], resources, worker)
            connection.wait([process.sentinel for _, process in running.values()], POLL_SECONDS)
            for folder in folders.values():  # if the run was moved, nothing may be written at its old place
                if not (folder / "cell.json").exists():
                    raise UserError(f"{folder}: cell.json is gone; was the run moved? Continue it with --out")
            for name, (worker, process) in list(running.items()):
                if process.exitcode is not None:
                    del running[name]
                    idle.append(worker)
                    self._end(name, folders[name], process.exitcode, resources.devices)

    def _is_over(self, name: str, folder: Path) -> bool:
        result = read_result(folder)
        return result is not None and (result["status"] in DONE or name not in self._again)

    def _end(self, name: str, folder: Path, exitcode: int, devices: int) -> None:
        if exitcode == BUSY:  # a signal stopped it, or another process of this grid took the lock first
            self.report(name, "stopped, or taken by another process")
            return
        self._again.discard(name)
        result = read_result(folder)
        if self._tries[name].add(folder) < MOST_TRIES:
            if devices > 1:  # if one of several processes dies, the others often end with an error
                self._again.add(name)
        elif result is None:
            error = f"its process ended {MOST_TRIES} times without getting further, at last with status {exitcode}"
            result = make_result(folder, {}, "failed", error=error)
            write_result(folder, result)
        self.report(name, result["status"] if result else "interrupted")


def start(folder: Path, resources: Resources, worker: int) -> BaseProcess:
    """Start a process that runs the prepared cell in `folder` with a worker's resources, and ends when we end."""
    share = resources.environment(worker)
    for _ in range(MOST_TRIES):
        process = _context.Process(target=_run_cell, args=(folder, share, resources.threads, resources.devices))
        try:
            with expecting_children():  # if the server was killed, this starts another
                process.start()
            return process
        except (EOFError, OSError):  # the server died meanwhile; multiprocessing starts another once it notices
            time.sleep(POLL_SECONDS)
    raise UserError(f"the server that starts cells died {MOST_TRIES} times (out of memory?)")


def _is_begun(folder: Path) -> bool:
    return (folder / LAST).exists()


def _run_cell(folder: Path, environment: dict[str, str], threads: int, devices: int) -> None:
    _begin(folder / "log.txt")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # within a SLURM job, Lightning would treat the cell as one of its tasks
    os.environ.update(environment)
    if devices > 1:
        with expecting_children():
            sys.exit(subprocess.call([sys.executable, "-m", "implicit_slate.cli", "cell", str(folder)]))
    import torch  # already imported before the fork, so OMP_NUM_THREADS has no effect on it

    torch.set_num_threads(threads)
    sys.exit(cell.run(folder))


def _check(configs: Mapping[str, dict], to_parse: Mapping[str, dict]) -> int:
    from implicit_slate.ablation.configure import check  # already imported by the server

    return check(configs, to_parse)


def _begin(log: str | os.PathLike) -> None:
    """The start of every process: make it end with its parent, and redirect its output to a file."""
    end_with_parent()
    log = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
