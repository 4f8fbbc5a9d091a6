"""The units of an evaluation, shared out over devices."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager

import torch

from data_modules.processes import process_pool
from implicit_slate.evaluation.job import Job, Part, Unit, Worker


def device(number: int) -> torch.device:
    """The GPU of that number where there are any, else the CPU."""
    return torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")


def measure(job: Job, units: Sequence[Unit], devices: int) -> Iterator[tuple[Unit, Part]]:
    """Do the units, on several devices in a process for each; they come as they are done. `UserError` as it arises."""
    if devices == 1 or len(units) < 2:
        worker = Worker(job, device(0))
        for unit in units:
            yield unit, worker.do(unit)
        return
    with ExitStack() as stack:
        waiting: dict[Future[Part], tuple[Unit, int]] = {}
        rest, pools = iter(units), []
        for number in range(min(devices, len(units))):
            with _ignoring_interrupts():  # which its processes inherit: this one alone stops the work
                pools.append(stack.enter_context(process_pool(1, "spawn")))
            unit = next(rest)
            waiting[pools[number].submit(_do, job, number, devices, unit)] = unit, number
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                unit, number = waiting.pop(future)
                if (following := next(rest, None)) is not None:  # before the result is looked at: the device goes on
                    waiting[pools[number].submit(_do, job, number, devices, following)] = following, number
                yield unit, future.result()


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: Worker | None = None
"""Of this process, which serves one job on one device."""


def _do(job: Job, number: int, devices: int, unit: Unit) -> Part:
    global _worker
    if _worker is None:
        if device(number).type == "cpu":  # where processes share the cores
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // devices))
        _worker = Worker(job, device(number))
    return _worker.do(unit)
