"""`python -m benchmarks.training_step`: a training step of ours beside one of the plain model, time and peak memory.

Both models are trained in one process, step by step in turn.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import DEVICE, describe, in_turn, make_console, make_table, shown, timed
from benchmarks.memory import peak_bytes
from benchmarks.plain_slate import PlainSLATE
from implicit_slate import SLATE
from implicit_slate.errors import positive

MODELS = {"plain": PlainSLATE, "ours": SLATE}
SIZES = dict(image_size=64, d_model=192, slot_size=192, num_slots=3, num_iterations=3, num_blocks=4, num_heads=4)
VOCABULARIES = (1024, 4096)
GRADIENTS = ("unrolled", "implicit")


def loss_of(model: SLATE, image: Tensor) -> Tensor:
    """The loss of a training step."""
    losses = model.losses(image, tau=0.9)
    return losses.cross_entropy + losses.mse


def make_step(
    model: SLATE, image: Tensor, compute: Callable[[SLATE, Tensor], Tensor] = loss_of, capturable: bool = False
) -> Callable[[], None]:
    """Forward, backward, clipping by the infinity norm, Adam: one call is one training step.

    `compute` is `loss_of`, or that compiled or in another precision; `capturable`: as a CUDA graph.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Ours updates in one fused pass, as `implicit_slate.training` does; the plain one as torch does by default.
    fused = None if isinstance(model, PlainSLATE) else True
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=fused, capturable=capturable)

    def step() -> None:
        loss = compute(model, image)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, norm_type=math.inf)
        optimizer.step()

    return step


def prepare(name: str, sizes: dict, batch_size: int, device: str) -> Callable[[], None]:
    """The training step of the model called `name`, on random images."""
    torch.manual_seed(0)
    model = MODELS[name](**sizes).to(device)
    return make_step(model, torch.rand(batch_size, 3, sizes["image_size"], sizes["image_size"], device=device))


def peak_memory(name: str, sizes: dict, batch_size: int, device: str) -> int:
    """Bytes of tensors that a model and two of its steps take at their peak."""

    def two_steps() -> None:
        step = prepare(name, sizes, batch_size, device)
        for _ in range(2):  # the second has Adam's moments as well
            step()

    return peak_bytes(two_steps, device)


def time_steps(sizes: dict, batch_size: int, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of `rounds` steps of each model, in turn."""
    steps = {name: prepare(name, sizes, batch_size, device) for name in MODELS}
    return in_turn({name: partial(lambda step: timed(step, device)[0], step) for name, step in steps.items()}, rounds)


def row(sizes: dict, seconds: dict[str, list[float]], memory: dict[str, int]) -> list[str]:
    times = [f"{median(seconds[name]):.3f}" for name in MODELS]
    megabytes = [f"{memory[name] / 1e6:.0f}" for name in MODELS]
    speedup = median(plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True))
    saving = memory["plain"] / memory["ours"]
    return [str(sizes["vocab_size"]), sizes["gradient"], *times, f"{speedup:.2f}", *megabytes, f"{saving:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="timed steps of each model")
    parser.add_argument("--batch-size", type=positive, default=16)
    arguments = parser.parse_args()
    console, batch_size = make_console(), arguments.batch_size
    title = f"One training step, batch {batch_size}, 64×64, on {describe()} (medians)"
    numbers = ["plain s", "ours s", "ratio", "plain MB", "ours MB", "ratio"]
    table, plain = make_table(title, ["V", "gradient"], numbers), {v: [] for v in VOCABULARIES}
    settings = [dict(SIZES, vocab_size=v, gradient=g) for v in VOCABULARIES for g in GRADIENTS]
    for sizes in shown(settings, "peak memory, and steps in turn", console):
        memory = {name: peak_memory(name, sizes, batch_size, DEVICE) for name in MODELS}
        seconds = time_steps(sizes, batch_size, arguments.rounds, DEVICE)
        table.add_row(*row(sizes, seconds, memory))
        plain[sizes["vocab_size"]] += seconds["plain"]
    console.print(table)
    console.print(
        f"The plain step takes {median(plain[4096]) / median(plain[1024]):.1f} times as long at V=4096 as at 1024;"
    )
    console.print("the public code takes 2.4 times as long (3.4 s and 1.4 s on two CPU cores, batch 16).")


if __name__ == "__main__":
    main()
