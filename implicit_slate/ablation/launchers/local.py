"""The pool of this machine: several cells at a time, each in a fresh process.

Every process is forked from a server that has imported everything (that takes some ten seconds, a fork none) and never
trains, so it has no threads and no accelerator's context to lose. A cell on several devices is a program of its own,
which Lightning repeats for every device; the forked process starts it and waits.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
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
from implicit_slate.ablation.launchers import Work
from implicit_slate.errors import UserError
from implicit_slate.locks import is_locked
from implicit_slate.processes import end_with_parent, expecting_children
from implicit_slate.run_folder import DONE, LAST, read_result

POLL_SECONDS = 1.0
MOST_TRIES = 3
"""How often the process of a cell may die without a result (out of memory, say) before the cell counts as failed."""

_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Resources:
    """How this machine is divided: every worker has its own threads, and its own devices or a part of them."""

    workers: int
    devices: int
    """Processes of a cell."""
    accelerators: tuple[str, ...]
    """What CUDA_VISIBLE_DEVICES may name; empty on a CPU."""
    cores: int

    @classmethod
    def share_out(
        cls, workers: int | None, devices: int, accelerators: int, cells_per_device: int | None = None
    ) -> "Resources":
        """Without `workers`, as many as the machine has room for; `UserError` for more than that."""
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
        """CPU threads of each process; beside a GPU there is nothing to share, see `host.leave_threads`."""
        return 1 if self.accelerators else max(1, self.cores // (self.workers * self.devices))

    def environment(self, worker: int) -> dict[str, str]:
        """The environment variables that give a worker its share."""
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
    """A context in which processes are forked from one that has imported everything; at its end all of them are killed:
    cells that run lose what came after their last checkpoint, and the server by itself would take seconds to end."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for us, who then end the cells
    _context.set_forkserver_preload(["implicit_slate.ablation.launchers.server", "implicit_slate.ablation.train"])
    try:
        with expecting_children():  # the server's start takes a moment in which we may be killed
            forkserver.ensure_running()  # and begin to import
    finally:
        signal.signal(signal.SIGINT, previous)
    try:
        yield
    finally:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(process.cmdline()):  # multiprocessing's, which ends after us
                    process.kill()


def check(configs: Mapping[str, dict], to_parse: Mapping[str, dict]) -> int:
    """`configure.check` in a forked process; `UserError` as it raises it."""
    for _ in range(MOST_TRIES):
        pool = ProcessPoolExecutor(1, mp_context=_context, initializer=_begin, initargs=(os.devnull,))
        try:
            return pool.submit(_check, configs, to_parse).result()
        except (BrokenProcessPool, EOFError, ConnectionError):  # it or its server was killed (want of memory?)
            time.sleep(POLL_SECONDS)
        finally:
            pool.shutdown(wait=False)
    raise UserError(f"the process that checks the experiments was killed {MOST_TRIES} times (out of memory?)")


def launch(work: Work) -> None:
    """Run all of it on this machine, and come back when every cell has a result."""
    options = work.options
    if work.nodes > 1:
        raise UserError(f"--launcher local: the cells of this run are for {work.nodes} nodes each")
    resources = Resources.share_out(options.workers, work.devices, work.accelerators, options.cells_per_device)
    if options.dry_run:
        from implicit_slate.ablation.plan import print_plan

        return print_plan(work, resources)
    work.begin()

    def report(name: str, event: str) -> None:
        work.display.event(name, event)
        work.folder.write_results()

    pool = LocalPool(report)
    with work.display.shown():
        if work.pretrain:
            pool.run({"pretrain": work.pretrain}, resources)
            if not work.folder.is_pretrained():
                return
        pool.run(work.cells, resources)


class LocalPool:
    """Runs prepared cells, several at a time."""

    def __init__(self, report: Callable[[str, str], None]):
        """`report(name, event)` hears what happens to a cell: `started`, `resumed`, `interrupted`, `taken by another
        process`, or how it ended."""
        self.report = report
        self._tries: Counter[str] = Counter()
        self._again: set[str] = set()

    def run(self, folders: Mapping[str, Path], resources: Resources) -> None:
        """Come back when every cell (a name and a prepared folder each) has a result, by us or by another process.

        A failed cell is tried once; cells on several devices and cells that die without a result, `MOST_TRIES` times.
        `UserError` where the folder of a cell is gone.
        """
        # Cells that run again if they have failed. Whoever starts a grid again has mended something.
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
            for folder in folders.values():  # what we wrote at the place of a run that was moved would be in the way
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
        if exitcode == cell.BUSY:  # another runner of this grid was quicker by a moment
            self.report(name, "taken by another process")
            return
        self._tries[name] += 1
        self._again.discard(name)
        result = read_result(folder)
        if self._tries[name] < MOST_TRIES:
            if devices > 1:  # where one process of several dies, the others often end with an error of their own
                self._again.add(name)
        elif result is None:
            error = f"its process ended {MOST_TRIES} times without a result, at last with status {exitcode}"
            result = cell.make_result(folder, {}, "failed", error=error)
            cell.write_result(folder, result)
        self.report(name, result["status"] if result else "interrupted")


def start(folder: Path, resources: Resources, worker: int) -> BaseProcess:
    """A process that runs the prepared cell in `folder` with a worker's share of the machine; it ends with us."""
    share = resources.environment(worker)
    for _ in range(MOST_TRIES):
        process = _context.Process(target=_run_cell, args=(folder, share, resources.threads, resources.devices))
        try:
            process.start()
            return process
        except (EOFError, OSError):  # the server died while it was asked; another is started once that is known
            time.sleep(POLL_SECONDS)
    raise UserError(f"the server that starts cells died {MOST_TRIES} times (out of memory?)")


def _is_begun(folder: Path) -> bool:
    return (folder / LAST).exists()


def _run_cell(folder: Path, environment: dict[str, str], threads: int, devices: int) -> None:
    _begin(folder / "log.txt")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # where we run within a job, Lightning would take the cell for one of its tasks
    os.environ.update(environment)
    if devices > 1:
        with expecting_children():
            sys.exit(subprocess.call([sys.executable, "-m", "implicit_slate.cli", "cell", str(folder)]))
    import torch  # imported before the fork, so OMP_NUM_THREADS comes too late

    torch.set_num_threads(threads)
    sys.exit(cell.run(folder))


def _check(configs: Mapping[str, dict], to_parse: Mapping[str, dict]) -> int:
    from implicit_slate.ablation.configure import check  # imported already by the server

    return check(configs, to_parse)


def _begin(log: str | os.PathLike) -> None:
    """The first lines of every process: it ends with us, and what it prints goes to a file."""
    end_with_parent()
    log = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
