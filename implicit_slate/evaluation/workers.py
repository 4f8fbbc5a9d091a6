"""The units of an evaluation, shared out over devices."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager

import torch

from data_modules.processes import process_pool
from implicit_slate.evaluation.job import Job, Part, Unit, Worker


def device(number: int) -> torch.device:
    """The GPU of that number where there are any, else the CPU."""
    return torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")


class Devices:
    """Several devices with a process each, or one that this process uses. A context manager: processes start with the
    first work, serve one job after the other, and end with it."""

    def __init__(self, count: int):
        self.count = count
        self._stack = ExitStack()
        self._pools: list[ProcessPoolExecutor] = []

    def __enter__(self) -> "Devices":
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def measure(self, job: Job, units: Sequence[Unit]) -> Iterator[tuple[Unit, Part]]:
        """Do the units; they come as they are done. `UserError` as it arises."""
        if not units:
            return
        if self.count == 1:
            worker = Worker(job, device(0))
            for unit in units:
                yield unit, worker.do(unit)
            return
        while len(self._pools) < self.count:
            with _ignoring_interrupts():  # which the new process inherits: this one alone stops the work
                self._pools.append(self._stack.enter_context(process_pool(1, "spawn")))
        rest = iter(units)
        waiting: dict[Future[Part], tuple[Unit, int]] = {}

        def submit(number: int) -> None:
            if (unit := next(rest, None)) is not None:
                waiting[self._pools[number].submit(_do, job, number, self.count, unit)] = unit, number

        for number in range(self.count):
            submit(number)
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                unit, number = waiting.pop(future)
                submit(number)  # before the result is looked at: the device goes on
                yield unit, future.result()


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: Worker | None = None
"""Of this process, for the job at hand."""


def _do(job: Job, number: int, devices: int, unit: Unit) -> Part:
    global _worker
    if _worker is None or _worker.job != job:
        if device(number).type == "cpu":  # the processes share the cores
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // devices))
        _worker = Worker(job, device(number))
    return _worker.do(unit)
