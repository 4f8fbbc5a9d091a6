"""Comparison with torchdeq 0.1.0 (Geng and Kolter 2023) on the same maps in float64.

Corresponding options, with `get_deq(core="indexing", ...)`:

| ours | torchdeq |
|---|---|
| solver picard, n iterations | f_solver="simple_fixed_point_iter", f_max_iter=n (no statistics; the n-th iterate) |
| solver anderson or broyden, tol | the same f_solver, f_tol, f_stop_mode="rel" (its default is the absolute residual) |
| implicit | grad=1, tau=1: one recorded step to the detached z* |
| neumann(k) | grad=k, tau=1 |
| phantom(k, τ) | grad=k, tau=τ |
| truncated(k) of n | f_max_iter=n-k, grad=k, tau=1 |
| unrolled, n iterations | f_solver="fixed_point_iter", f_max_iter=0, grad=n (z0 is detached: weights only) |
| exact(method) | ift=True (or hook_ift=True), b_solver=method, b_tol, b_stop_mode="rel" |

torchdeq has no GMRES, no dense solve, and no `bilevel`.
"""

import pytest
import torch
from torch import Tensor
from torchdeq import get_deq
from torchdeq.loss import jac_reg

from implicit_slate.fixed_point import fixed_point, jacobian_regularizer
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate
from tests.fixed_point.maps import linear_map, relative_error, tanh_leaves, tanh_map

MAPS = ("linear", "tanh", "slots")
SOLVERS = ("anderson", "broyden")


def make(name: str):
    """(f, z0, the tensors to differentiate by). f is a contraction, so both libraries find its only fixed point."""
    if name == "linear":
        f = linear_map(radius=0.7)
        return f, f.z0, [f.matrix, f.offset]
    if name == "tanh":
        weight, inputs = tanh_leaves()
        return tanh_map(weight, inputs), torch.zeros_like(inputs), [weight, inputs]
    torch.manual_seed(1)  # with other seeds the step may not be a contraction
    module = SlotAttention(input_size=8, num_slots=3, slot_size=8, mlp_size=8).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(0.8)
    inputs = torch.randn(2, 10, 8, dtype=torch.float64, requires_grad=True)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    return SlotUpdate(module, inputs), torch.randn(2, 3, 8, dtype=torch.float64), [inputs, *weights]


def gradients(z: Tensor, leaves: list[Tensor]) -> Tensor:
    """The gradients of a fixed, asymmetric loss of z by all leaves, as one vector."""
    cotangent = torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view_as(z)
    found = torch.autograd.grad(z, leaves, cotangent, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def theirs(f, z0: Tensor, **options) -> Tensor:
    """The last state that torchdeq's module returns in training mode."""
    states, _ = get_deq(core="indexing", **options)(f, z0)
    return states[-1]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_fixed_point(name, solver):
    f, z0, _ = make(name)
    with torch.no_grad():
        expected = theirs(f, z0, f_solver=solver, f_max_iter=300, f_tol=1e-9, f_stop_mode="rel")
        solution = fixed_point(f, z0, solver, max_iterations=300, tol=1e-9)
    assert solution.converged.all()
    assert relative_error(solution.z, expected) < 1e-7
    assert relative_error(f(expected), expected) < 1e-7  # torchdeq's solution is also a fixed point


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("n", [1, 5])
def test_the_same_iterate_long_before_the_fixed_point(name, n):
    f, z0, _ = make(name)
    with torch.no_grad():
        expected = theirs(f, z0, f_solver="simple_fixed_point_iter", f_max_iter=n, grad=1)
        assert relative_error(fixed_point(f, z0, max_iterations=n).z, expected) < 1e-14


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("ift", [{"ift": True}, {"hook_ift": True}], ids=["function", "hook"])
def test_the_exact_gradient(name, method, ift):
    f, z0, leaves = make(name)
    z = theirs(
        f, z0, f_solver="fixed_point_iter", f_max_iter=1000, f_tol=1e-13, f_stop_mode="rel",
        b_solver=method, b_max_iter=300, b_tol=1e-9, b_stop_mode="rel", **ift,
    )  # fmt: skip
    solution = fixed_point(f, z0, max_iterations=1000, tol=1e-13, gradient=f"exact({method})")
    ours, expected = gradients(solution.z, leaves), gradients(z, leaves)
    assert relative_error(ours, expected) < 1e-7
    # Shows that it is the whole series, not only its first term: these differ by far more than the tolerance.
    first_term = gradients(fixed_point(f, z0, max_iterations=1000, tol=1e-13, gradient="implicit").z, leaves)
    assert relative_error(first_term, expected) > 1e-3


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("gradient", "before", "options"),
    [
        ("unrolled", 0, {"grad": 4, "f_solver": "fixed_point_iter"}),
        ("implicit", 4, {"grad": 1}),
        ("neumann(3)", 4, {"grad": 3}),
        ("phantom(5, 0.5)", 4, {"grad": 5, "tau": 0.5}),
        ("phantom(2, 0.9)", 4, {"grad": 2, "tau": 0.9}),
        ("truncated(1)", 3, {"grad": 1}),
        ("truncated(3)", 1, {"grad": 3}),
    ],
)
def test_recorded_steps_after_four_iterations(name, gradient, before, options):
    """Far from the fixed point, modes differ that agree at it. `before` is the number of unrecorded steps."""
    f, z0, leaves = make(name)
    z = theirs(f, z0, **{"f_solver": "simple_fixed_point_iter", "f_max_iter": before, **options})
    ours = fixed_point(f, z0, max_iterations=4, gradient=gradient).z
    assert relative_error(ours, z) < 1e-13
    assert relative_error(gradients(ours, leaves), gradients(z, leaves)) < 1e-12


def test_the_jacobian_regularizer_with_the_same_random_vector():
    weight, inputs = tanh_leaves(batch=1)  # torchdeq's is a mean over the batch, ours one number per image
    f, z = tanh_map(weight, inputs), torch.full_like(inputs, 0.5).requires_grad_()
    torch.manual_seed(1)
    expected = jac_reg(f(z), z)
    torch.manual_seed(1)
    ours = jacobian_regularizer(f, z.detach())
    assert relative_error(ours, expected.view(1)) < 1e-6  # torchdeq draws the vector in float32
    assert relative_error(*(torch.autograd.grad(loss.sum(), weight)[0] for loss in (ours, expected))) < 1e-6
