"""`python -m benchmarks.training_step`: time and peak memory of a training step, ours and the plain model's.

Each model is trained in its own process, and the processes take turns step by step. Ours uses the memory allocator's
settings of `fit`, the plain one the system's. "Default" is the precision that `fit` chooses on this hardware.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import DEVICE, describe, in_turn, make_console, make_table, shown, timed
from benchmarks.memory import peak_bytes
from benchmarks.plain_slate import PlainSLATE
from implicit_slate import SLATE
from implicit_slate.errors import positive
from implicit_slate.training.allocator import keep_freed_memory
from implicit_slate.training.precision import fastest_precision

GRADIENTS = ("unrolled", "implicit")
COMMON = dict(d_model=192, slot_size=192, num_iterations=7)
SETTINGS = {
    "64×64, V=1024, K=3": (dict(image_size=64, vocab_size=1024, num_slots=3, num_blocks=4, num_heads=4), 16, 1.10),
    "64×64, V=4096, K=12": (dict(image_size=64, vocab_size=4096, num_slots=12, num_blocks=4, num_heads=4), 16, 2.60),
    "96×96, V=4096, K=12": (dict(image_size=96, vocab_size=4096, num_slots=12, num_blocks=8, num_heads=8), 8, 7.96),
}
"""Sizes, batch size, and seconds of a step of the public SLATE, measured on two cores of an AMD EPYC with AVX512."""
NAMES = {"plain": "32-true", "float32": "32-true", "default": fastest_precision()}
"""The timed models and their precisions; all but `plain` are ours."""


def loss_of(model: SLATE, image: Tensor) -> Tensor:
    """The loss of a training step."""
    losses = model.losses(image, tau=0.9)
    return losses.cross_entropy + losses.mse


def make_step(
    model: SLATE, image: Tensor, compute: Callable[[SLATE, Tensor], Tensor] = loss_of, capturable: bool = False
) -> Callable[[], None]:
    """A function that makes one training step: forward, backward, clipping by the infinity norm, Adam.

    `compute` is `loss_of`, or a version of it that is compiled or in another precision. `capturable`: Adam can be
    recorded in a CUDA graph.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Ours uses fused Adam, as `implicit_slate.training` does; the plain one torch's default.
    fused = None if isinstance(model, PlainSLATE) else True
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=fused, capturable=capturable)

    def step() -> None:
        loss = compute(model, image)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, norm_type=math.inf)
        optimizer.step()

    return step


def prepare(name: str, sizes: dict, batch_size: int, device: str, precision: str = "32-true") -> Callable[[], None]:
    """The training step of the model `name`, on random images."""
    torch.manual_seed(0)
    model = (PlainSLATE if name == "plain" else SLATE)(**sizes).to(device)
    image = torch.rand(batch_size, 3, sizes["image_size"], sizes["image_size"], device=device)
    compute = loss_of if precision == "32-true" else torch.autocast(device, torch.bfloat16)(loss_of)
    return make_step(model, image, compute)


def peak_memory(name: str, sizes: dict, batch_size: int, device: str) -> int:
    """Peak bytes of tensors while a model is made and takes two steps."""

    def two_steps() -> None:
        step = prepare(name, sizes, batch_size, device)
        for _ in range(2):  # the second step also has Adam's moments
            step()

    return peak_bytes(two_steps, device)


def serve(connection: Connection, name: str, sizes: dict, batch_size: int, device: str) -> None:
    """Makes one step for every True received, and sends its seconds back."""
    if name != "plain":
        keep_freed_memory()
    step = prepare(name, sizes, batch_size, device, NAMES[name])
    for _ in range(6):  # until hardly any new memory is needed
        step()
    while connection.recv():
        connection.send(timed(step, device)[0])


@contextmanager
def process(name: str, sizes: dict, batch_size: int, device: str):
    """A process that trains the model `name`. Yields a function that makes a step there and returns its seconds."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs, name, sizes, batch_size, device), daemon=True)
    child.start()
    theirs.close()  # so that receiving fails if the child dies
    try:
        yield lambda: (ours.send(True), ours.recv())[1]
        ours.send(False)
    finally:
        child.join(timeout=10)


def time_steps(sizes: dict, batch_size: int, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of `rounds` steps of each model, alternating. If the default is float32, it is not timed twice."""
    names = [name for name in NAMES if name != "default" or NAMES[name] != "32-true"]
    with ExitStack() as stack:
        steps = {name: stack.enter_context(process(name, sizes, batch_size, device)) for name in names}
        seconds = in_turn(steps, rounds)
    return seconds | {"default": seconds.get("default", seconds["float32"])}


def row(seconds: dict[str, list[float]], memory: dict[str, int]) -> list[str]:
    """Table cells: seconds of each model, our speed-ups over plain, megabytes of plain and float32, and their ratio."""

    def speedup(name: str) -> str:
        return f"{median(plain / ours for plain, ours in zip(seconds['plain'], seconds[name], strict=True)):.2f}"

    times = [f"{median(seconds[name]):.3f}" for name in NAMES]
    megabytes = [f"{memory[name] / 1e6:.0f}" for name in ("plain", "float32")]
    return [*times, speedup("float32"), speedup("default"), *megabytes, f"{memory['plain'] / memory['float32']:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="timed steps of each model")
    arguments, console = parser.parse_args(), make_console()
    numbers = ["plain s", "float32 s", "default s", "plain÷float32", "plain÷default", "plain MB", "ours MB", "ratio"]
    table = make_table(f"One training step on {describe()} (medians)", ["setting", "gradient"], numbers)
    plain: dict[str, list[float]] = {name: [] for name in SETTINGS}
    work = [(name, gradient) for name in SETTINGS for gradient in GRADIENTS]
    for name, gradient in shown(work, "peak memory, and steps in turn", console):
        sizes, batch_size, _ = SETTINGS[name]
        sizes = COMMON | sizes | {"gradient": gradient}
        memory = {model: peak_memory(model, sizes, batch_size, DEVICE) for model in ("plain", "float32")}
        seconds = time_steps(sizes, batch_size, arguments.rounds, DEVICE)
        table.add_row(f"{name}, batch {batch_size}", gradient, *row(seconds, memory))
        times = ", ".join(f"{model} {median(values):.3f} s" for model, values in seconds.items())
        console.print(f"{name}, {gradient}: {times}")  # because the whole benchmark takes minutes
        plain[name] += seconds["plain"]
    console.print(table)
    console.print(f"The default precision is {NAMES['default']} here.")
    first, *others = SETTINGS
    for name in others:
        times, public = median(plain[name]) / median(plain[first]), SETTINGS[name][2] / SETTINGS[first][2]
        console.print(
            f"A step of {name} takes {times:.1f} times as long as one of {first} (plain); {public:.1f} (public)"
        )


if __name__ == "__main__":
    main()
