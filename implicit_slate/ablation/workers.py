"""Workers: threads that claim cells and wait for the process of each."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from implicit_slate.ablation.experiment import Experiment
from implicit_slate.ablation.forks import ask, fork_cell
from implicit_slate.ablation.run_folder import CellLock, RunFolder, read_json, try_lock
from implicit_slate.ablation.study import Queue
from implicit_slate.errors import UserError

POLL_SECONDS = 1.0
MOST_KILLS = 3
"""So many times a cell's process may die without a word (out of memory, say) before the cell counts as failed."""


@dataclass(frozen=True)
class Resources:
    """How this machine is shared out: every worker has its own devices or threads."""

    workers: int
    devices: int
    """Processes of a cell."""
    accelerators: tuple[str, ...]
    """What CUDA_VISIBLE_DEVICES may name; empty on a CPU."""
    cores: int

    @classmethod
    def share_out(cls, workers: int | None, devices: int, accelerators: int) -> "Resources":
        """As many workers as the machine has room for, if it is not said how many."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(accelerators)]
        names = tuple(names[:accelerators])
        if names and devices > len(names):
            raise UserError(f"--devices {devices}: this machine has {len(names)}")
        return cls(workers or max(1, (len(names) or cores) // devices), devices, names, cores)

    @property
    def threads(self) -> int | None:
        """CPU threads of each process; None leaves that to torch, on an accelerator."""
        return None if self.accelerators else max(1, self.cores // (self.workers * self.devices))

    def visible_devices(self, worker: int) -> str | None:
        """CUDA_VISIBLE_DEVICES of a worker; more workers than the machine has room for share devices."""
        if not self.accelerators:
            return None
        first = worker * self.devices
        return ",".join(self.accelerators[i % len(self.accelerators)] for i in range(first, first + self.devices))


class Workers:
    """Runs the cells of a queue, several at a time, until every cell of the run has a result."""

    def __init__(
        self,
        folder: RunFolder,
        resources: Resources,
        experiment_of: Callable[[str], Experiment],
        report: Callable[[str, str], None],
    ):
        """`experiment_of` gives the experiment of a cell's id; `report(cell, event)` hears of what happens:
        `started`, `resumed`, `interrupted`, or how it ended."""
        self.folder, self.resources, self.experiment_of, self.report = folder, resources, experiment_of, report
        self.error: BaseException | None = None
        self._stopping = threading.Event()
        self._kills: Counter[str] = Counter()
        self._running: dict[int, Callable[[], None]] = {}
        self._guard = threading.Lock()

    def run(self, queue: Queue) -> None:
        """Come back when every cell has a result; raises what stopped a worker."""
        threads = [threading.Thread(target=self._work, args=(queue, n)) for n in range(self.resources.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(POLL_SECONDS)  # in pieces: an endless wait would not let Ctrl-C through
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Kill the cells that run; they stay in the queue, and lose what came after their last checkpoint."""
        self._stopping.set()
        with self._guard:
            for kill in self._running.values():
                kill()

    def run_pretraining(self, axes: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
        """Run what comes before the cells, unless another process of this run does or did; its result."""
        folder = self.folder.pretrain
        while (result := read_json(folder / "result.json")) is None and not self._stopping.is_set():
            lock = try_lock(folder)
            if lock is None:
                self._stopping.wait(POLL_SECONDS)
                continue
            try:
                if not (folder / "result.json").exists():
                    self._run_cell("pretrain", folder, axes, experiment, lock, 0)
            finally:
                lock.release()
        return result or {"status": "interrupted"}

    def _work(self, queue: Queue, worker: int) -> None:
        try:
            while not self._stopping.is_set():
                claim = queue.claim()
                if claim is None:
                    if all(self.folder.result(cell) is not None for cell in self.folder.cells):
                        return
                    self._stopping.wait(POLL_SECONDS)
                    continue
                cell = self.folder.cells[claim.cell]
                try:
                    self._run_cell(
                        cell.id, self.folder.cell(cell.id), cell.axes, self.experiment_of(cell.id), claim.lock, worker
                    )
                finally:
                    queue.finish(claim)
                    self.folder.write_results()
        except BaseException as error:
            self.error = self.error or error
            self.stop()

    def _run_cell(self, name: str, folder: Path, axes, experiment, lock: CellLock, worker: int) -> None:
        resumes = (folder / "checkpoints" / "last.ckpt").exists()
        self.report(name, "resumed" if resumes else "started")
        ask("cell.prepare", folder, name, dict(axes), experiment, self.resources.devices)
        kill, wait = self._start(folder, lock, worker)
        with self._guard:
            self._running[worker] = kill
        if self._stopping.is_set():
            kill()
        wait()
        with self._guard:
            del self._running[worker]
        result = read_json(folder / "result.json")
        if result is None and not self._stopping.is_set():
            self._kills[name] += 1
            if self._kills[name] >= MOST_KILLS:
                error = f"its process was killed {MOST_KILLS} times"
                result = ask("result.write_result", folder, "failed", None, None, error)
        self.report(name, result["status"] if result else "interrupted")

    def _start(self, folder: Path, lock: CellLock, worker: int) -> tuple[Callable[[], None], Callable[[], Any]]:
        """Start the prepared cell's process; how to kill it, and how to wait for its end."""
        visible = self.resources.visible_devices(worker)
        if self.resources.devices == 1:
            process = fork_cell(folder, lock, self.resources.threads, visible)
            return process.kill, process.join
        environment = dict(os.environ)
        if visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        if self.resources.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.resources.threads)
        with open(folder / "log.txt", "a") as log:
            ranks = subprocess.Popen(
                [sys.executable, "-m", "implicit_slate.ablation.cell", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[lock.descriptor],
                start_new_session=True,  # a group of its own, in which the ranks are killed together
            )

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ranks.pid, signal.SIGKILL)

        return kill, ranks.wait
