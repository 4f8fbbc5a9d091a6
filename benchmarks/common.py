"""Shared code of the benchmarks: the device, timing, tables."""

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

Result = TypeVar("Result")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def describe(device: str = DEVICE) -> str:
    """The device's name, and the versions of the software."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else platform.processor() or platform.machine()
        name += f", {torch.get_num_threads()} thread(s)"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"


def timed(run: Callable[[], Result], device: str = DEVICE) -> tuple[float, Result]:
    """(seconds, result) of `run()`; on a GPU, until all its kernels have finished."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    return time.perf_counter() - start, result


def synchronize(device: str = DEVICE) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_turn(measurements: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The values of each measurement, one per round, after a warm-up round. The order is reversed in every round.

    If the machine slows down for a while, neighbouring measurements slow down alike, so their ratios are most reliable.
    """
    values: dict[str, list[float]] = {name: [] for name in measurements}
    for number in range(rounds + 1):
        for name in list(measurements)[:: 1 if number % 2 else -1]:
            value = measurements[name]()
            if number:
                values[name].append(value)
    return values


def make_console() -> Console:
    """A console; 120 columns wide if it is not a terminal, so that tables do not wrap."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    return console


def make_table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table with columns for names and columns for numbers."""
    table = Table(*names, title=title, title_justify="left")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def shown(work: Sequence[Result], description: str, console: Console) -> Iterable[Result]:
    """Iterates over `work`, with a progress bar on a terminal."""
    return track(work, description, console=console, disable=not console.is_terminal, transient=True)
