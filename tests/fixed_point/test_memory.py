"""Memory that a solve keeps, and its peak, as functions of the number of iterations n."""

from functools import partial

import pytest
import torch

from benchmarks.complexity import GRADIENTS
from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.refinement import Refinement
from implicit_slate.fixed_point import fixed_point
from implicit_slate.fixed_point.adjoint import METHODS
from implicit_slate.fixed_point.gradients import MODES

FLAT = [gradient for gradient in GRADIENTS if not gradient.startswith(("unrolled", "exact"))]
SAME_PRODUCTS = [f"exact({method}, 10)" for method in ("broyden", "anderson", "gmres")] + ["exact(dense)"]
"""Modes with a fixed number of products, here ten: if they stopped on convergence, the number would depend on z*."""


@pytest.fixture(scope="module")
def slots():
    refinement = Refinement(num_slots=4, slot_size=16, num_inputs=64, batch_size=2)
    refinement.peak_bytes("unrolled", 2)  # so that torch's one-off allocations are done
    return refinement


@pytest.mark.parametrize("gradient", FLAT + SAME_PRODUCTS)
def test_saved_tensors_and_peak_memory_are_flat_in_n(slots, gradient):
    for measured in (slots.saved_bytes, slots.peak_bytes):
        few, many = measured(gradient, 2), measured(gradient, 32)
        assert many == pytest.approx(few, rel=0.05), (gradient, few, many)


def test_every_mode_is_measured():
    assert {gradient.partition("(")[0] for gradient in GRADIENTS} == set(MODES)
    assert {gradient.partition("(")[2].rstrip(")") for gradient in GRADIENTS if "exact" in gradient} == set(METHODS)


def test_unrolled_saves_the_same_with_every_further_iteration_and_needs_that_memory(slots):
    saved, peak = ({n: of("unrolled", n) for n in (2, 3, 17, 32)} for of in (slots.saved_bytes, slots.peak_bytes))
    one = saved[3] - saved[2]
    assert saved[17] - saved[2] == saved[32] - saved[17] == 15 * one > 0
    assert saved[32] > 10 * saved[2] and peak[32] > 4 * peak[2]
    assert peak[32] - peak[17] == pytest.approx(peak[17] - peak[2], rel=0.02)
    assert peak[32] - peak[17] == pytest.approx(saved[32] - saved[17], rel=0.1)


@pytest.mark.parametrize("mode", ["truncated", "neumann"])
def test_what_is_recorded_grows_with_k_instead(slots, mode):
    one, two, four = (slots.saved_bytes(f"{mode}({k})", 8) for k in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.1)
    assert two > 1.5 * one


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
@pytest.mark.parametrize("gradient", ["implicit", "exact(gmres)"])
def test_forward_solvers_of_limited_memory_save_nothing_for_the_backward_pass(solver, gradient):
    torch.manual_seed(0)
    matrix = torch.randn(64, 64).div(16).requires_grad_()

    def forward(n):
        return fixed_point(
            lambda z: torch.tanh(z @ matrix + 1), torch.zeros(8, 64), solver, max_iterations=n, gradient=gradient
        )

    few, many = (saved_bytes(lambda n=n: forward(n).z, besides=[matrix])[0] for n in (2, 32))
    assert few == many > 0


def test_peak_of_a_tuple_state_is_flat_too():
    torch.manual_seed(0)
    matrix = torch.randn(256, 256).div(64).requires_grad_()

    def step(z):
        a, b = z
        return torch.tanh(a @ matrix + b), torch.tanh(b @ matrix)

    def run(n, gradient):
        matrix.grad = None
        z = fixed_point(step, (torch.zeros(32, 256), torch.ones(32, 256)), max_iterations=n, gradient=gradient).z
        (z[0].sum() + z[1].sum()).backward()

    for gradient, grows in (("implicit", False), ("unrolled", True)):
        _, few, many = (peak_bytes(partial(run, n, gradient)) for n in (2, 2, 32))  # the first is a warm-up
        assert many > 4 * few if grows else many == pytest.approx(few, rel=0.05)
