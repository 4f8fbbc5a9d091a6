"""The pool of this machine: several cells at a time, each in a fresh process.

A process of one device is forked from a server that has imported everything (that takes some ten seconds, a fork none)
and never trains, so it has no threads and no accelerator's context to lose. A cell on several devices is a program of
its own, which Lightning repeats for every device.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import psutil

from implicit_slate.ablation import cell
from implicit_slate.ablation.experiment import Experiment, Machine
from implicit_slate.ablation.result import make_result, write_result
from implicit_slate.errors import UserError
from implicit_slate.locks import is_locked
from implicit_slate.processes import PARENT, end_with_parent
from implicit_slate.run_folder import read_result

POLL_SECONDS = 1.0
MOST_TRIES = 3
"""How often the process of a cell may die without a result (out of memory, say) before the cell counts as failed."""

_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Resources:
    """How this machine is divided: every worker has its own devices or threads."""

    workers: int
    devices: int
    """Processes of a cell."""
    accelerators: tuple[str, ...]
    """What CUDA_VISIBLE_DEVICES may name; empty on a CPU."""
    cores: int

    @classmethod
    def share_out(cls, workers: int | None, devices: int, accelerators: int) -> "Resources":
        """Without `workers`, as many as the machine has room for."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(accelerators)]
        names = tuple(names[:accelerators])
        room = len(names) or cores
        if devices > room:
            raise UserError(f"--devices {devices}: this machine has {room} {'devices' if names else 'cores'}")
        return cls(workers or room // devices, devices, names, cores)

    @property
    def threads(self) -> int | None:
        """CPU threads of each process; None leaves that to torch, on an accelerator."""
        return None if self.accelerators else max(1, self.cores // (self.workers * self.devices))

    def environment(self, worker: int) -> dict[str, str]:
        """The environment variables that give a worker its share; more workers than there is room for share devices."""
        if not self.accelerators:
            return {"OMP_NUM_THREADS": str(self.threads)}
        first = worker * self.devices
        mine = (self.accelerators[i % len(self.accelerators)] for i in range(first, first + self.devices))
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}


class LocalPool:
    """Runs prepared cells, several at a time, and knows how to check experiments. A context manager."""

    def __init__(self, report: Callable[[str, str], None]):
        """`report(name, event)` hears what happens to a cell: `started`, `resumed`, `interrupted`, `taken by another
        process`, or how it ended."""
        self.report = report
        self.error: BaseException | None = None
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._tries: Counter[str] = Counter()
        self._taken: set[str] = set()
        self._ended: set[str] = set()
        self._failed_before: set[str] = set()

    def __enter__(self) -> "LocalPool":
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for us, who then end the cells
        _context.set_forkserver_preload(["implicit_slate.ablation.train"])
        try:
            forkserver.ensure_running()  # and begin to import
        finally:
            signal.signal(signal.SIGINT, previous)
        return self

    def __exit__(self, *exception) -> None:
        """Kill the cells that run (they lose what came after their last checkpoint), and the server, which by itself
        would take seconds to end and keep our output open."""
        self._stopping.set()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(process.cmdline()):  # multiprocessing's, which ends after us
                    process.kill()

    def check(self, experiments: Sequence[Experiment], parsed_only: Sequence[Experiment]) -> Machine:
        """`configure.check` in a process that has imported everything; `UserError` as it raises it."""
        for _ in range(MOST_TRIES):
            pool = ProcessPoolExecutor(1, mp_context=_context, initializer=_be_quiet)
            try:
                return pool.submit(_check, experiments, parsed_only).result()
            except BrokenProcessPool:  # killed, perhaps for want of memory
                continue
            finally:
                pool.shutdown(wait=False)
        raise UserError(f"the process that checks the experiments was killed {MOST_TRIES} times (out of memory?)")

    def run(self, folders: Mapping[str, Path], resources: Resources) -> None:
        """Come back when every cell (a name and a prepared folder each) has a result, by us or by another process.

        A failed cell is tried once; cells on several devices and cells that die without a result, `MOST_TRIES` times.
        Raises what stopped a worker.
        """
        self._failed_before = {name for name, folder in folders.items() if read_result(folder)}
        threads = [
            threading.Thread(target=self._work, args=(folders, resources, worker))
            for worker in range(resources.workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(POLL_SECONDS)  # in pieces: an endless wait would not let Ctrl-C through
        if self.error is not None:
            raise self.error

    def _work(self, folders: Mapping[str, Path], resources: Resources, worker: int) -> None:
        try:
            while not self._stopping.is_set():
                name = self._take(folders)
                if name is not None:
                    self._run_cell(name, folders[name], resources, worker)
                elif all(self._is_over(name, folder) for name, folder in folders.items()):
                    return
                else:
                    self._stopping.wait(POLL_SECONDS)
        except BaseException as error:
            self.error = self.error or error
            self.__exit__()

    def _take(self, folders: Mapping[str, Path]) -> str | None:
        """A cell that nobody works on, begun ones first; nobody else of this process is given it until it is over."""
        with self._guard:
            for name in sorted(folders, key=lambda name: not _is_begun(folders[name])):
                folder = folders[name]
                if name not in self._taken and not self._is_over(name, folder) and not is_locked(folder):
                    self._taken.add(name)
                    return name
        return None

    def _is_over(self, name: str, folder: Path) -> bool:
        """Whether a cell is done, or has failed since we began; one that failed before runs again, as whoever starts
        the grid again has mended something."""
        if name in self._ended or cell.is_done(folder):
            return True
        return not self._tries[name] and name not in self._failed_before and read_result(folder) is not None

    def _run_cell(self, name: str, folder: Path, resources: Resources, worker: int) -> None:
        self.report(name, "resumed" if _is_begun(folder) else "started")
        kill, wait = _start(folder, resources, worker)
        if self._stopping.is_set():
            kill()
        if wait() == cell.BUSY:  # another runner of this grid was quicker by a moment
            with self._guard:
                self._taken.discard(name)
            self.report(name, "taken by another process")
            return
        self._tries[name] += 1
        result = read_result(folder)
        if result is None and self._tries[name] >= MOST_TRIES and not self._stopping.is_set():
            result = make_result(folder, {}, "failed", error=f"its process was killed {MOST_TRIES} times")
            write_result(folder, result)
        with self._guard:
            self._taken.discard(name)
            # Where one process of several dies, the others often end with an error of their own.
            if result and (resources.devices == 1 or self._tries[name] >= MOST_TRIES):
                self._ended.add(name)
        self.report(name, result["status"] if result else "interrupted")


def _is_begun(folder: Path) -> bool:
    return (folder / "checkpoints" / "last.ckpt").exists()


def _start(folder: Path, resources: Resources, worker: int) -> tuple[Callable[[], None], Callable[[], int | None]]:
    """Start the process of a prepared cell; how to kill it, and how to wait for its exit status."""
    share = resources.environment(worker)
    if resources.devices == 1:
        process = _context.Process(target=_run_forked, args=(folder, share, resources.threads))
        process.start()

        def wait() -> int | None:
            process.join()
            return process.exitcode

        return process.kill, wait
    with open(folder / "log.txt", "a") as log:
        program = subprocess.Popen(
            [sys.executable, "-m", "implicit_slate.cli", "cell", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | share | {PARENT: str(os.getpid())},
        )
    return program.kill, program.wait


def _run_forked(folder: Path, environment: dict[str, str], threads: int | None) -> None:
    end_with_parent()
    _redirect_output(folder / "log.txt")
    os.environ.update(environment)
    if threads is not None:
        import torch  # imported before the fork, so OMP_NUM_THREADS comes too late

        torch.set_num_threads(threads)
    sys.exit(cell.run(folder))


def _check(experiments: Sequence[Experiment], parsed_only: Sequence[Experiment]) -> Machine:
    from implicit_slate.ablation.configure import check  # imported already by the server

    return check(experiments, parsed_only)


def _be_quiet() -> None:
    end_with_parent()
    _redirect_output(Path(os.devnull))  # Lightning talks


def _redirect_output(path: Path) -> None:
    log = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
