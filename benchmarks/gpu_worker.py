"""Measurements in a process of their own, so that a crash or an endless compilation costs only what it measures."""

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
"""The values that one measurement returns by their headings, units included; None: cannot be told."""


class NotHere(RuntimeError):
    """This machine cannot run a measurement; says why."""


@dataclass(frozen=True, eq=False)
class Scale:
    """The size of everything that is measured."""

    sizes: Mapping[str, Any]
    """Settings of `SLATE`."""
    batch_size: int
    rounds: int
    """Timings of which the median is taken."""
    steps: int
    """Training steps in one timing."""
    fit_steps: int
    """Steps of `Trainer.fit` in one timing."""
    matrix_size: int


@dataclass(frozen=True)
class Section:
    """Measurements that share a process, so that a crash or an endless compilation harms no others."""

    name: str
    parts: str
    """`module:function`; given a `Scale`, the function returns {name of a measurement: function without arguments that
    returns its `Row`}."""
    seconds: float
    """Its share of the time. What earlier sections left is added to it."""


class Worker:
    """A process that measures section after section. After a crash, an error or an overrun another one takes over."""

    def __init__(self) -> None:
        self._process: Any = None

    def run(self, section: Section, scale: Scale, seconds: float) -> Iterator[tuple[str, Row]]:
        """The rows of a section as they come: {"error": …} for what failed, {"skipped": …} for what was left out.

        The process is ended after `seconds`.
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
            if name is None:  # first the names of all, last that there are no more
                missing = row
                if not missing:
                    break
                continue
            missing.remove(name)
            failed = failed or "error" in row
            yield name, row
        if missing or failed and DEVICE == "cuda":  # after some errors of CUDA all that follows in a process fails
            self.end()
        for name in missing:
            yield name, {"skipped": reason}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU that its parent has seen
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has not come to its own group, or has ended
                os.killpg(self._process.pid, signal.SIGKILL)  # with what it started: pytest, compilers
            self._process.kill()
            self._process.join()
            self._process = None


def _work(pipe: Connection) -> None:
    """In the other process: sections as they are asked for, measurement by measurement."""
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
                torch.cuda.empty_cache()  # for those that need much memory
        pipe.send((None, []))


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {lines[0] if lines else ''}"[:300] + f" ({Path(place.filename).name}:{place.lineno})"
    )
