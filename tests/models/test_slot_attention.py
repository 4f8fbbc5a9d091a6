"""Options of slot attention: initial slots, solvers, and which parameters are trained."""

import pytest
import torch

from implicit_slate.errors import UserError
from implicit_slate.models.slot_attention import SlotAttention
from tests.fixed_point.maps import ALL_MODES

REACHED = ("unrolled", "bilevel")
"""The modes in which the initial slots get a gradient."""


def make(**options):
    torch.manual_seed(0)
    return SlotAttention(input_size=8, num_slots=3, slot_size=8, mlp_size=16, **options)


@pytest.fixture
def inputs():
    return torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gradient", ALL_MODES)
def test_gaussian_slots_are_trained_where_the_mode_reaches_them(gradient, inputs):
    attention = make(gradient=gradient)
    attention(inputs)[0].z.square().sum().backward()
    for name, parameter in attention.named_parameters():
        if name in ("slot_mu", "slot_log_sigma"):
            assert parameter.requires_grad is (parameter.grad is not None) is (gradient in REACHED)
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("gradient", ["bilevel", "implicit", "unrolled"])
def test_queries_are_the_start_of_every_image(gradient, inputs):
    attention = make(gradient=gradient, slot_init="queries")
    slots = attention.sample_slots(4)
    assert slots.shape == (4, 3, 8) and torch.equal(slots[0], slots[3])
    assert "slot_mu" not in dict(attention.named_parameters())
    attention(inputs)[0].z.square().sum().backward()
    assert (attention.queries.grad is not None) is attention.queries.requires_grad is (gradient in REACHED)


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_other_solvers_find_the_fixed_point_of_a_contracting_update(solver, inputs):
    def solve(**options):
        attention = make(**options)
        with torch.no_grad():  # at initialisation it is not a contraction
            attention.mlp[2].weight.mul_(0.1)
        return attention(inputs, torch.zeros(2, 3, 8))

    solution, update = solve(num_iterations=60, solver=solver, tol=1e-5)
    plain, _ = solve(num_iterations=400, tol=1e-5)
    assert solution.converged.all() and solution.evaluations < plain.evaluations
    assert torch.allclose(solution.z, plain.z, atol=1e-3)
    assert update.attention.sum(-1).allclose(torch.ones(2, 20))


def test_slots_keep_their_type_under_autocast(inputs):
    with torch.autocast("cpu", torch.bfloat16):
        for gradient in ("unrolled", "exact(gmres)"):
            attention = make(gradient=gradient)
            solution, _ = attention(inputs)
            assert solution.z.dtype == torch.float32
            solution.z.square().sum().backward()
            assert attention.project_q.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "broyden", "gradient": "unrolled"}, "works only with solver 'picard'"),
        ({"num_iterations": 2, "gradient": "truncated(3)"}, "only 2 iterations"),
        ({"slot_init": "gausian"}, "did you mean 'gaussian'"),
        ({"num_iterations": 0}, "num_iterations=0"),
    ],
)
def test_choices_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)
