"""`python -m benchmarks.profile_step`: how the time of our training step divides among kinds of operations."""

import argparse
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import DEVICE, describe, make_console, make_table, shown, timed
from benchmarks.training_step import COMMON, SETTINGS, prepare
from implicit_slate.errors import positive
from implicit_slate.training.allocator import keep_freed_memory

KINDS = {
    "matrix products": ("mm", "linear"),
    "convolutions": ("conv",),
    "softmax": ("softmax",),
    "normalisation": ("layer_norm", "group_norm"),
    "random numbers": ("uniform", "random", "normal", "cumsum", "searchsorted"),
    "copies": (
        "copy", "cat", "clone", "fill", "zero", "contiguous", "pixel_", "index", "gather", "scatter", "embedding",
    ),
    "optimiser": ("adam", "vector_norm", "foreach"),
    "element by element": (
        "add", "sub", "mul", "div", "neg", "exp", "log", "clamp", "threshold", "sigmoid", "tanh", "sum",
    ),
}  # fmt: skip
"""Substrings of the operations' names, by kind; the first matching kind counts."""
OTHER = "the rest: Python, views, allocation"


def kind_of(operation: str) -> str:
    """The kind of a torch operation, such as `aten::addmm`."""
    name = operation.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Each kind's share of the CPU time of one call of `step`."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    microseconds = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        microseconds[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(microseconds.values())
    return {kind: value / total for kind, value in microseconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=3, help="timed steps of which the quickest counts")
    arguments, console = parser.parse_args(), make_console()
    keep_freed_memory()
    found = {}
    for name in shown(list(SETTINGS), "steps under the profiler", console):
        sizes, batch_size, _ = SETTINGS[name]
        step = prepare("float32", COMMON | sizes | {"gradient": "implicit"}, batch_size, DEVICE)
        step()
        with FlopCounterMode(display=False) as counter:
            step()
        seconds = min(timed(step)[0] for _ in range(arguments.rounds))
        found[name] = shares(step), counter.get_total_flops() / 1e9 / seconds
    a, b = torch.randn(4096, 1024), torch.randn(1024, 1024)
    peak = 2 * 4096 * 1024**2 / 1e9 / min(timed(lambda: a @ b)[0] for _ in range(arguments.rounds + 1))
    table = make_table(f"Our step, implicit, float32, on {describe('cpu')}", ["share of"], list(found))
    for kind in [*KINDS, OTHER]:
        table.add_row(kind, *(f"{100 * part[kind]:.0f}%" for part, _ in found.values()))
    table.add_row("GFLOP/s of the step", *(f"{rate:.0f}" for _, rate in found.values()))
    console.print(table)
    console.print(f"A product of large matrices reaches {peak:.0f} GFLOP/s.")


if __name__ == "__main__":
    main()
