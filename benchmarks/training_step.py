"""`python -m benchmarks.training_step`: a training step of ours beside one of the plain model, time and peak memory.

Both models are trained in one process, step about, so that whatever else the machine does meets both alike. Memory is
measured in a process of its own for each model.
"""

import argparse
import math
import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.plain_slate import PlainSLATE
from implicit_slate import SLATE

MODELS = {"plain": PlainSLATE, "ours": SLATE}
SIZES = dict(image_size=64, d_model=192, slot_size=192, num_slots=3, num_iterations=3, num_blocks=4, num_heads=4)
VOCABULARIES = (1024, 4096)
GRADIENTS = ("unrolled", "implicit")
PUBLIC_SECONDS = {1024: 1.4, 4096: 3.4}
"""A step of the public SLATE code at these sizes, batch 16, on two CPU cores."""


class Cell(NamedTuple):
    """One row of the table."""

    vocab_size: int
    gradient: str
    seconds: dict[str, list[float]]
    """Of each timed step, by model."""
    memory: dict[str, int]
    """Bytes at the peak of a step above those of a process that has only imported PyTorch, by model."""

    def seconds_a_step(self, model: str) -> float:
        return median(self.seconds[model])

    @property
    def speedup(self) -> float:
        """The median ratio of neighbouring steps: a machine that slows down for a while slows both."""
        pairs = zip(self.seconds["plain"], self.seconds["ours"], strict=True)
        return median(plain / ours for plain, ours in pairs)


def make_step(model: SLATE, image: Tensor) -> Callable[[], None]:
    """Forward, backward, clipping by the infinity norm, Adam: one call is one training step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Ours updates in one fused pass, as `implicit_slate.training` does; the plain one as torch does by itself.
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=None if isinstance(model, PlainSLATE) else True)

    def step() -> None:
        losses = model.losses(image, tau=0.9)
        optimizer.zero_grad()
        (losses.cross_entropy + losses.mse).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, norm_type=math.inf)
        optimizer.step()
        if image.is_cuda:
            torch.cuda.synchronize()

    return step


def prepare(name: str, sizes: dict, batch_size: int, device: str) -> Callable[[], None]:
    """The training step of the model called `name`, on random images."""
    torch.manual_seed(0)
    model = MODELS[name](**sizes).to(device)
    return make_step(model, torch.rand(batch_size, 3, sizes["image_size"], sizes["image_size"], device=device))


def peak_memory(name: str, sizes: dict, batch_size: int, device: str) -> int:
    """Bytes that two steps take at their peak, parameters included, on top of those of this bare process."""
    before = _peak_resident()
    step = prepare(name, sizes, batch_size, device)
    for _ in range(2):  # the second has Adam's moments as well
        step()
    return torch.cuda.max_memory_allocated() if device == "cuda" else _peak_resident() - before


def _peak_resident() -> int:
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux hands getrusage's peak on from parent to child; this one is the process's own.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def peak_memory_apart(*arguments) -> int:
    """`peak_memory` in a process of its own, forked from a server that has only imported the models."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.plain_slate"])
    with context.Pool(1) as pool:
        return pool.apply(peak_memory, arguments)


def time_steps(sizes: dict, batch_size: int, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of `rounds` steps of each model, taken in turn, after one that warms up."""
    steps = {name: prepare(name, sizes, batch_size, device) for name in MODELS}
    seconds = {name: [] for name in MODELS}
    for _ in range(1 + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def table(cells: list[Cell], title: str) -> Table:
    result = Table("V", "gradient", title=title, title_justify="left")
    for column in ("plain s", "ours s", "ratio", "plain MB", "ours MB", "ratio"):
        result.add_column(column, justify="right")
    for cell in cells:
        plain, ours = cell.memory["plain"], cell.memory["ours"]
        result.add_row(
            str(cell.vocab_size), cell.gradient,
            f"{cell.seconds_a_step('plain'):.3f}", f"{cell.seconds_a_step('ours'):.3f}", f"{cell.speedup:.2f}",
            f"{plain / 1e6:.0f}", f"{ours / 1e6:.0f}", f"{plain / ours:.2f}",
        )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each model")
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    console = Console()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    settings = [dict(SIZES, vocab_size=v, gradient=g) for v in VOCABULARIES for g in GRADIENTS]
    hidden = not console.is_terminal  # a pipe gets the table alone
    memories = [
        {name: peak_memory_apart(name, sizes, arguments.batch_size, device) for name in MODELS}
        for sizes in track(settings, "peak memory", console=console, disable=hidden)
    ]
    seconds = [
        time_steps(sizes, arguments.batch_size, arguments.rounds, device)
        for sizes in track(settings, "steps in turn", console=console, disable=hidden)
    ]
    cells = [
        Cell(sizes["vocab_size"], sizes["gradient"], taken, memory)
        for sizes, taken, memory in zip(settings, seconds, memories, strict=True)
    ]

    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    console.print(table(cells, f"One training step, batch {arguments.batch_size}, 64×64, on {where} (medians)"))
    small, large = (
        median(cell.seconds_a_step("plain") for cell in cells if cell.vocab_size == v) for v in VOCABULARIES
    )
    public = PUBLIC_SECONDS[4096] / PUBLIC_SECONDS[1024]
    console.print(f"The plain step takes {large / small:.1f} times as long at V=4096 as at V=1024;")
    console.print(f"the public code takes {public:.1f} times as long (3.4 s and 1.4 s on two CPU cores).")


if __name__ == "__main__":
    main()
