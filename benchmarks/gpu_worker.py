"""Measurements in a separate process, so that a crash or an endless compilation loses only its own section."""

import contextlib
import multiprocessing
import os
import pkgutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DEVICE
from implicit_slate.processes import end_with_parent

Row = dict[str, float | str | None]
"""The values of one measurement by column heading, which includes the unit; None: unknown."""


class NotHere(RuntimeError):
    """This machine cannot run a measurement; the message says why."""


@dataclass(frozen=True, eq=False)
class Scale:
    """The sizes of all measurements."""

    sizes: Mapping[str, Any]
    """Settings of `SLATE`."""
    batch_size: int
    rounds: int
    """Number of timings, of which the median is taken."""
    steps: int
    """Training steps per timing."""
    fit_steps: int
    """Steps of `Trainer.fit` per timing."""
    matrix_size: int


@dataclass(frozen=True)
class Section:
    """Measurements that share a process."""

    name: str
    parts: str
    """`module:function`. Given a `Scale`, the function returns {name of a measurement: function without arguments that
    returns its `Row`}."""
    seconds: float
    """Time for this section. Time left over by earlier sections is added to it."""


class Worker:
    """A process that measures section after section, replaced after a crash, an overrun or (on a GPU) an error."""

    def __init__(self) -> None:
        self._process: Any = None

    def run(self, section: Section, scale: Scale, seconds: float) -> Iterator[tuple[str, Row]]:
        """Yields a section's rows as they arrive: {"error": …} for failures, {"skipped": …} for what was left out.

        The process is killed after `seconds`.
        """
        deadline = time.monotonic() + seconds
        if self._process is None or not self._process.is_alive():
            self.end()
            self._start()
        self._pipe.send((section.parts, scale))
        missing, failed, reason = [section.name], False, f"no time left: {max(0.0, seconds):.0f} s were over"
        while self._pipe.poll(max(0.0, deadline - time.monotonic())):
            try:
                name, row = self._pipe.recv()
            except EOFError:
                self._process.join(10)
                reason = f"its process ended with status {self._process.exitcode}"
                break
            if name is None:  # the first such message lists all names, the last one is empty
                missing = row
                if not missing:
                    break
                continue
            missing.remove(name)
            failed = failed or "error" in row
            yield name, row
        if missing or failed and DEVICE == "cuda":  # after some CUDA errors everything else in the process fails
            self.end()
        for name in missing:
            yield name, {"skipped": reason}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA if its parent has
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has no process group of its own yet, or has ended
                os.killpg(self._process.pid, signal.SIGKILL)  # including its child processes: pytest, compilers
            self._process.kill()
            self._process.join()
            self._process = None


def _work(pipe: Connection) -> None:
    """The worker's loop: runs the measurements of each section that is requested through `pipe`."""
    end_with_parent()
    os.setsid()
    while True:
        name, scale = pipe.recv()
        measurements: dict[str, Callable[[], Row]] = {}
        try:
            measurements = pkgutil.resolve_name(name)(scale)
        except Exception as error:
            pipe.send((None, [name]))
            pipe.send((name, {"error": _one_line(error)}))
        else:
            pipe.send((None, [*measurements]))
        for name, measure in measurements.items():
            try:
                row = measure()
            except NotHere as reason:
                row = {"skipped": str(reason)}
            except Exception as error:
                row = {"error": _one_line(error)}
            pipe.send((name, row))
            if DEVICE == "cuda":
                torch.cuda.empty_cache()  # so that the next measurement has enough memory
        pipe.send((None, []))


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {lines[0] if lines else ''}"[:300] + f" ({Path(place.filename).name}:{place.lineno})"
    )
