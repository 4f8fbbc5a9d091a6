"""Measurements of `benchmarks.gpu` with torch alone: each section is a function from a `Scale` to its measurements."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import DEVICE, timed
from benchmarks.generation import measure as time_generation
from benchmarks.gpu_worker import NotHere, Row, Scale
from benchmarks.memory import peak_bytes
from benchmarks.plain_slate import PlainSLATE
from benchmarks.training_step import GRADIENTS, loss_of, make_step
from implicit_slate import SLATE
from implicit_slate.models.generation import capture
from implicit_slate.training.compiling import INDUCTOR_OPTIONS, compile_losses
from implicit_slate.training.cuda_graphs import CUDAGraphs

ROOT = Path(__file__).parents[1]
TRAINING_STEPS = 250_000
"""The paper's number of steps."""

Parts = dict[str, Callable[[], Row]]
Step = Callable[[], object]


def seconds_of(run: Callable[[], object], scale: Scale, repeats: int) -> float:
    """Seconds of one run: the median of timings of `repeats` runs each, so that the CPU need not wait for every run."""
    return median(timed(lambda: [run() for _ in range(repeats)])[0] for _ in range(scale.rounds)) / repeats


def hours(seconds_per_step: float) -> Row:
    return {f"hours of {TRAINING_STEPS:,} steps": TRAINING_STEPS * seconds_per_step / 3600}


def card(scale: Scale) -> Parts:
    """The device's speed in a large matrix product and in a copy."""
    size = scale.matrix_size

    def product(dtype: torch.dtype, precision: str) -> Row:
        torch.set_float32_matmul_precision(precision)
        a, b = torch.randn(2, size, size, device=DEVICE, dtype=dtype)
        torch.mm(a, b)  # warm-up
        return {"TFLOP/s": 2 * size**3 / seconds_of(lambda: torch.mm(a, b), scale, repeats=5) / 1e12}

    def copy() -> Row:
        source = torch.zeros(4, size, size, device=DEVICE)
        target = source.clone()
        return {"GB/s": 2 * source.nbytes / seconds_of(lambda: target.copy_(source), scale, repeats=5) / 1e9}

    return {
        f"product, {size} × {size}, float32": partial(product, torch.float32, "highest"),
        f"product, {size} × {size}, TF32": partial(product, torch.float32, "high"),
        f"product, {size} × {size}, bfloat16": partial(product, torch.bfloat16, "highest"),
        "copy, read and written": copy,
    }


def gpu_tests(scale: Scale) -> Parts:
    """The tests that are skipped without a GPU."""

    def run() -> Row:
        files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rA", "--tb=line", "-p", "no:cacheprovider", *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if "No module named pytest" in done.stderr:
            raise NotHere("pytest is not installed")
        outcomes = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (.*)$", done.stdout, re.MULTILINE)
        if not outcomes:
            raise RuntimeError(f"pytest ended with status {done.returncode}: {(done.stdout + done.stderr)[-200:]}")
        counts = [sum(outcome == kind for outcome, _ in outcomes) for kind in ("PASSED", "FAILED", "ERROR")]
        skipped = sum(int(number) for number in re.findall(r"^SKIPPED \[(\d+)\]", done.stdout, re.MULTILINE))
        failures = "; ".join(text for outcome, text in outcomes if outcome in ("FAILED", "ERROR"))
        return dict(zip(("tests passed", "tests failed", "errors"), counts)) | {
            "tests skipped": skipped,
            "failures": failures[:2000],
        }

    return {"tests marked `gpu`": run}


@dataclass(frozen=True)
class Variant:
    """How a training step is computed."""

    model: str = "ours"
    bfloat16: bool = False
    tf32: bool = False
    compiled: bool = False
    graphs: bool = True
    """Whether the kernels of compiled code are launched as CUDA graphs."""

    def make(self, scale: Scale, gradient: str, capturable: bool = False) -> Step:
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.manual_seed(0)
        kind = PlainSLATE if self.model == "plain" else SLATE
        model = kind(**scale.sizes, gradient=gradient).to(DEVICE)
        image = torch.rand(scale.batch_size, 3, model.image_size, model.image_size, device=DEVICE)
        compute = loss_of
        if self.compiled:
            torch.compiler.reset()  # drops the code of earlier variants
            how = {"options": INDUCTOR_OPTIONS} if DEVICE == "cuda" else {"backend": "aot_eager"}
            # The same code as in `SLATEModule`, which then need not compile it again.
            losses, tau = compile_losses(model.losses, **how), torch.full((), 0.9, device=DEVICE)
            if self.graphs and DEVICE == "cuda":
                losses = CUDAGraphs(model, losses)

            def compute(model: SLATE, image: Tensor) -> Tensor:
                found = losses(image, tau, hard=False)
                return found.cross_entropy + found.mse

        if self.bfloat16:
            compute = torch.autocast(DEVICE, torch.bfloat16)(compute)
        return make_step(model, image, compute, capturable)


def steps(scale: Scale) -> Parts:
    """Training steps in eager mode."""
    variants = {
        "bfloat16": Variant(bfloat16=True),
        "float32": Variant(),
        "TF32": Variant(tf32=True),
        "plain, float32": Variant("plain"),
    }
    return {
        f"{name}, {gradient}": partial(_measure, variant, variant.make, scale, gradient)
        for name, variant in variants.items()
        for gradient in GRADIENTS
    }


def graph_steps(scale: Scale) -> Parts:
    """Training steps as a CUDA graph: recorded once and replayed, so that launching operations takes no time."""

    def captured(variant: Variant, scale: Scale, gradient: str) -> Step:
        if DEVICE != "cuda":
            raise NotHere("a CUDA graph needs a GPU")
        return capture(variant.make(scale, gradient, capturable=True), warm_up=3).replay

    return {
        f"{name}, {gradient}": partial(_measure, variant, partial(captured, variant), scale, gradient)
        for name, variant in {"bfloat16": Variant(bfloat16=True), "float32": Variant()}.items()
        for gradient in reversed(GRADIENTS)
    }


def compiled_steps(scale: Scale) -> Parts:
    """Training steps with forward and backward compiled by Inductor. Without a GPU, where this takes minutes, a single
    step is only traced."""

    def make(variant: Variant, scale: Scale, gradient: str) -> Step:
        if DEVICE != "cuda" and (variant != variants["float32"] or gradient != "implicit"):
            raise NotHere("without a GPU one step only is traced, in float32")
        return variant.make(scale, gradient)

    variants = {
        "bfloat16": Variant(bfloat16=True, compiled=True),
        "float32": Variant(compiled=True),
        "bfloat16, kernels started one by one": Variant(bfloat16=True, compiled=True, graphs=False),
    }
    return {
        f"{name}, {gradient}": partial(_measure, variant, partial(make, variant), scale, gradient)
        for name, variant in variants.items()
        for gradient in reversed(GRADIENTS)
    }


def _measure(variant: Variant, make: Callable[[Scale, str], Step], scale: Scale, gradient: str) -> Row:
    """Time and peak memory of the step that `make` makes, with its FLOP/s and bytes per second."""
    made: list[Step] = []
    first: list[float] = []

    def start() -> None:
        step = make(scale, gradient)
        first.append(timed(step)[0])
        for _ in range(2):
            step()
        made.append(step)

    peak = peak_bytes(start, DEVICE)
    seconds = seconds_of(made.pop(), scale, scale.steps)
    flops, traffic = _work_of(variant.model, variant.bfloat16, gradient, scale)
    return {
        "step ms": 1e3 * seconds,
        "TFLOP/s": flops / seconds / 1e12,
        "GB/s": None if variant.compiled else traffic / seconds / 1e9,
        "peak GB": peak / 1e9,
        **hours(seconds),
        "first step s": first[0],
    }


@cache
def _work_of(model: str, bfloat16: bool, gradient: str, scale: Scale) -> tuple[int, int]:
    """Floating-point operations, and bytes read and written, of a step in eager mode."""
    step = Variant(model, bfloat16).make(scale, gradient)
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        step()
    return flops.get_total_flops(), traffic.bytes


class Traffic(TorchDispatchMode):
    """Adds up the bytes of all operations' inputs and outputs, except for views, which move none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            self.bytes += sum(tensor.nbytes for tensor in _tensors([args, *(kwargs or {}).values(), result]))
        return result


def _tensors(values: Iterable) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def generation(scale: Scale) -> Parts:
    """Greedy generation of all tokens of a batch from its slots."""

    @cache
    def model() -> SLATE:
        torch.manual_seed(0)
        return SLATE(**scale.sizes).to(DEVICE).eval()

    def row(seconds: float, batch_size: int) -> Row:
        return {"s": seconds, "images/s": batch_size / seconds, "tokens/s": batch_size * model().num_tokens / seconds}

    def generate(batch_size: int) -> Row:
        slots = model().sample_slots(batch_size).detach()
        model().generate(slots)  # warm-up
        return row(seconds_of(lambda: model().generate(slots), scale, repeats=1), batch_size)

    def recompute() -> Row:
        return row(time_generation(model(), scale.batch_size, parts=4)[1], scale.batch_size)

    batches = {f"batch {size}": partial(generate, size) for size in (scale.batch_size, 1)}
    return batches | {f"recomputing every prefix, batch {scale.batch_size}": recompute}
