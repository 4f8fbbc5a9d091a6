"""`python -m benchmarks.gpu`: what this machine's GPU does with SLATE at the paper's scale, in at most 8 minutes.

It needs no network, and of packages torch, lightning, torchmetrics, scipy, pillow, rich and tensorboard (pytest for the
tests). What fails is named and left out, and so is what the time does not suffice for; all else goes on. Without a GPU
it runs at a tiny size, which shows only that it works.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pkgutil
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import DEVICE, describe, make_console, make_table
from implicit_slate.files import write_atomically
from implicit_slate.processes import end_with_parent
from implicit_slate.provenance import revision

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


PAPER = Scale(
    dict(
        image_size=96, vocab_size=4096, d_model=192, num_slots=12, slot_size=192, num_iterations=7, num_blocks=8,
        num_heads=8,
    ), batch_size=50, rounds=5, steps=5, fit_steps=250, matrix_size=8192,
)  # fmt: skip
TINY = Scale(
    dict(
        image_size=16, vocab_size=32, d_model=16, num_slots=3, slot_size=16, slot_mlp_size=16, num_iterations=3,
        num_blocks=1, num_heads=2,
    ), batch_size=2, rounds=2, steps=2, fit_steps=10, matrix_size=128,
)  # fmt: skip
SECTIONS = tuple(
    Section(name, f"benchmarks.{parts}", seconds)
    for name, parts, seconds in (
        ("The card", "gpu_sections:card", 20),
        ("GPU tests", "gpu_sections:gpu_tests", 60),
        ("Training step", "gpu_sections:steps", 70),
        ("Training step as a CUDA graph", "gpu_sections:graph_steps", 40),
        ("Generation", "gpu_sections:generation", 40),
        ("Jacobian", "gpu_lightning:jacobian", 30),
        ("Lightning", "gpu_lightning:fit", 75),
        ("Training step, compiled", "gpu_sections:compiled_steps", 110),  # last, because it takes what time is left
    )
)
STARTING = 30
"""Seconds for the first process to start and import, which on a machine that has just come up takes long."""
SMALL_SHARE = 1 / 3
"""Of the sections' time on a machine without a GPU: far more than it takes, unless others keep the machine busy."""

NOTES = """\
A training step is forward, backward, clipping and Adam. `plain` is `benchmarks/plain_slate.py`, the others are ours;
float32 and bfloat16 are the precision of matrix products and convolutions (TF32: float32 with rounded factors). TFLOP/s
counts matrix products, convolutions and attention, of which a causal half is counted as a whole; GB/s what the
operations that are run one by one read and write, wherever it lies, so a fused step has none. Peak GB includes weights
and Adam's moments. Lightning: `Trainer.fit` on images in memory with GradientNorm, Divergence and SlotUsage beside a
bare loop on one batch in the same precision. Jacobian: one measurement of `SlotJacobian`, whose products depend on the
weights; these are random ones. Without a GPU, one compiled step is traced, and no code made for it.
"""


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


def versions() -> dict[str, str | None]:
    """Of what matters to the figures; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "implicit-slate": revision()}
    for name in ("torch", "triton", "lightning", "torchmetrics"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    cudnn = torch.backends.cudnn.version()
    return found | {"cuda": torch.version.cuda, "cudnn": None if cudnn is None else str(cudnn)}


def measure(sections: Sequence[Section], scale: Scale, share: float, folder: Path, console: Console) -> dict:
    """The report of all sections, each given `share` of its seconds; it is written after each, and printed."""
    begin = time.monotonic()
    report: dict = {
        "card": describe(),
        "on_gpu": DEVICE == "cuda",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "sizes": dict(scale.sizes) | {"batch_size": scale.batch_size},
        "sections": {section.name: {} for section in sections},
    }
    end, worker = begin + STARTING, Worker()
    for section in sections:
        end += share * section.seconds
        console.print(f"{section.name} …", style="dim")
        rows = report["sections"][section.name]
        rows.update(worker.run(section, scale, end - time.monotonic()))
        console.print(*_tables(section.name, rows), sep="\n")
        report["seconds"] = round(time.monotonic() - begin, 1)
        write_atomically(folder / "gpu.json", json.dumps(report, indent=2) + "\n")
        write_atomically(folder / "gpu.md", markdown(report))
    worker.end()
    return report


def headline(report: dict) -> str:
    if report["on_gpu"]:
        return f"On {report['card']}."
    return (
        f"NO GPU WAS FOUND: these figures are of a tiny model on {report['card']}, and tell nothing but that it runs."
    )


def markdown(report: dict) -> str:
    found = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    sizes = ", ".join(f"{name} = {value}" for name, value in report["sizes"].items())
    blocks = [
        "# SLATE on a GPU", f"**{headline(report)}**", f"{report['date']}, {report['seconds']:.0f} s. {found}.",
        f"Sizes: {sizes}.", NOTES.strip(),
    ]  # fmt: skip
    for section, rows in report["sections"].items():
        lines, left_out = _lines(rows)
        blocks.append(f"## {section}")
        if lines:
            cells = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
        blocks.append("\n".join(f"- {line}" for line in left_out) if rows else "Not run yet.")
    return "\n\n".join(block for block in blocks if block) + "\n"


def _lines(rows: Mapping[str, Row]) -> tuple[list[list[str]], list[str]]:
    """The header and the rows of what was measured (nothing if there is none), and what was left out and why."""
    measured = {name: row for name, row in rows.items() if not row.keys() & {"error", "skipped"}}
    left_out = [
        f"{name}: {kind}: {row[kind]}" for name, row in rows.items() for kind in ("error", "skipped") if kind in row
    ]
    headings = list(dict.fromkeys(heading for row in measured.values() for heading in row))
    lines = [[name, *(_shown(row.get(heading)) for heading in headings)] for name, row in measured.items()]
    return [["", *headings], *lines] if lines else [], left_out


def _shown(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _tables(title: str, rows: Mapping[str, Row]) -> list:
    lines, left_out = _lines(rows)
    if not lines:
        return [title, *left_out]
    table = make_table(title, lines[0][:1], lines[0][1:])
    for line in lines[1:]:
        table.add_row(*line)
    return [table, *left_out]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json, gpu.md (%(default)s)")
    folder = parser.parse_args(arguments).out
    console, on_gpu = make_console(), DEVICE == "cuda"
    report = measure(SECTIONS, PAPER if on_gpu else TINY, 1.0 if on_gpu else SMALL_SHARE, folder, console)
    console.print(headline(report), f"Written: {folder / 'gpu.md'} and {folder / 'gpu.json'}", sep="\n")


if __name__ == "__main__":
    main()
