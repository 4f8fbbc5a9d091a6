"""The losses as one graph of `torch.compile`, compared with eager mode."""

import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from callbacks import Diverged
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Gradient
from implicit_slate.models import SLATE
from implicit_slate.training import SLATEModule
from implicit_slate.training.compiling import INDUCTOR_OPTIONS, compile_losses
from tests.tiny import SLATE_SIZES, TinyImages
from tests.training.setting import module, trainer


def losses_and_gradients(model, losses, tau, bfloat16=False):
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, bfloat16):
        found = losses(TinyImages().probe(4)["image"], tau)
    (found.cross_entropy + found.mse).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"cross_entropy": found.cross_entropy.detach(), "mse": found.mse.detach(), **gradients}


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_in_16_bits_gradients_are_right_and_those_of_the_refinement_are_computed_in_32(gradient):
    """With torch 2.11, gradients of norms in 16 bits can be zero."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = SLATE(**SLATE_SIZES, gradient=gradient).eval()
    plain = losses_and_gradients(model, model.losses, 1.0, bfloat16=True)
    found = losses_and_gradients(model, compile_losses(model.losses, backend="aot_eager"), 1.0, bfloat16=True)
    for name, expected in plain.items():
        assert (found[name] - expected).norm() <= 0.05 * expected.norm() + 1e-4, name
    # A softmax over slots is not changed by what is added for all slots, so this gradient is a sum that cancels.
    assert found["slot_attention.norm_slots.bias"].norm() < 1e-6


@pytest.mark.parametrize("settings", [{"gradient": "unrolled"}, {"gradient": "implicit"}])
def test_losses_and_gradients_are_the_same_and_all_temperatures_share_two_graphs(settings):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, backend = SLATE(**SLATE_SIZES | settings), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.losses, fullgraph=True, backend=backend)
    for tau in (1.0, 0.9, 0.8, 0.7):
        expected = losses_and_gradients(model, model.losses, tau)
        for name, value in losses_and_gradients(model, compiled, tau).items():
            assert (value - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-6, name
    assert backend.frame_count <= 2  # one for a constant, one for any number


@pytest.mark.gpu
def test_a_gpu_trains_every_parameter_with_its_own_kernels():
    """In 16 bits with dropout and noise, attention and the Gumbel-softmax use our own kernels."""
    torch._dynamo.reset()
    model = SLATE(**SLATE_SIZES | {"dropout": 0.1}).cuda()
    image, tau = TinyImages().probe(4)["image"].cuda(), torch.full((), 0.5, device="cuda")

    def gradients(losses):
        torch.manual_seed(0)
        sums = {name: 0.0 for name, _ in model.named_parameters()}
        for _ in range(20):
            model.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                found = losses(image, tau)
            (found.cross_entropy + found.mse).backward()
            for name, parameter in model.named_parameters():
                sums[name] += 0.0 if parameter.grad is None else parameter.grad.double().norm().item()
        return sums

    expected = gradients(model.losses)
    found = gradients(compile_losses(model.losses, options=INDUCTOR_OPTIONS))
    for name, norm in expected.items():
        assert norm / 3 <= found[name] <= 3 * norm + 1e-3, name


def test_what_inductor_is_told_it_knows():
    torch.compile(torch.sin, options=INDUCTOR_OPTIONS)  # an unknown option is an error


@pytest.fixture
def without_inductor(monkeypatch):
    """Its code would take a minute to compile."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend="aot_eager", **options))


def test_a_first_evaluation_that_is_not_finite_is_seen_outside_of_the_graph(without_inductor):
    """In compiled losses, the solver cannot raise an error."""
    made = module(SLATEModule, compile=True)
    trainer(1).fit(made, TinyImages())
    with torch.no_grad():
        made.model.slot_attention.project_q.weight.fill_(torch.nan)
    with pytest.raises(Diverged, match="step 0: the first evaluation of the refinement is not finite"):
        trainer(1).fit(made, TinyImages())


def test_training_compiles_once(without_inductor):
    """Although the temperature changes with every step."""
    made = module(SLATEModule, compile=True, tau_steps=4)
    trainer(1).fit(made, TinyImages())
    with torch.compiler.set_stance("fail_on_recompile"):
        trainer(3).fit(made, TinyImages())


class OfItsOwn(Gradient):
    """Somebody's mode whose steps differ between calls."""

    compiles = False


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tol": 1e-3}, "tol=0.001"),
        ({"gradient": "exact(gmres, 7)"}, "gradient 'exact(gmres, 7)'"),
        ({"gradient": OfItsOwn()}, "gradient 'OfItsOwn'"),
    ],
)
def test_what_stops_by_what_it_finds_is_not_compiled(settings, named):
    message = f"compile=True: expected a fixed number of iterations, which {named} does not have"
    with pytest.raises(UserError, match=re.escape(message)):
        module(SLATEModule, compile=True, **settings)
    assert module(SLATEModule, **settings)._compile is False
