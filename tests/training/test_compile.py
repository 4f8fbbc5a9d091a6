"""The losses as one graph of `torch.compile`, compared with eager mode."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from callbacks import Diverged
from implicit_slate.errors import UserError
from implicit_slate.models import SLATE
from implicit_slate.training import SLATEModule
from implicit_slate.training.slate_module import inductor_options
from tests.tiny import SLATE_SIZES, TinyImages
from tests.training.setting import module, trainer


def losses_and_gradients(model, losses, tau):
    model.zero_grad()
    torch.manual_seed(1)
    found = losses(TinyImages().probe(4)["image"], tau)
    (found.cross_entropy + found.mse).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"cross_entropy": found.cross_entropy.detach(), "mse": found.mse.detach(), **gradients}


def test_in_16_bits_every_parameter_gets_its_gradient():
    """With torch 2.11, gradients of norms in 16 bits can be zero."""
    torch._dynamo.reset()
    model = SLATE(**SLATE_SIZES).eval()
    found = []
    for losses in (model.losses, torch.compile(model.losses, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(losses_and_gradients(model, losses, 1.0))
    for name, expected in found[0].items():
        assert (found[1][name] - expected).norm() <= 0.05 * expected.norm() + 1e-3, name


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
    found = gradients(torch.compile(model.losses, fullgraph=True, options=inductor_options(graphs=False)))
    for name, norm in expected.items():
        assert norm / 3 <= found[name] <= 3 * norm + 1e-3, name


@pytest.mark.gpu
@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_a_gpu_computes_the_same_in_one_graph(gradient):
    """In evaluation mode with learned slots, so that no noise is drawn."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = SLATE(**SLATE_SIZES, gradient=gradient, slot_init="queries").cuda().eval()
    image = TinyImages().probe(4)["image"].cuda()

    def gradients(losses):
        model.zero_grad()
        found = losses(image)
        (found.cross_entropy + found.mse).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(model.losses)
    assert sum(float(gradient.abs().sum() > 0) for gradient in expected.values()) > 50
    compiled = torch.compile(model.losses, fullgraph=True, options=inductor_options(graphs=True))
    for _ in range(4):  # the first calls record the CUDA graph
        found = gradients(compiled)
    for name, gradient in expected.items():  # convolutions round to TF32 in different ways
        assert (found[name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-5, name


def test_what_inductor_is_told_it_knows():
    for graphs in (False, True):
        torch.compile(torch.sin, options=inductor_options(graphs))  # an unknown option is an error


def test_a_first_evaluation_that_is_not_finite_is_seen_outside_of_the_graph(monkeypatch):
    """In compiled losses, the solver cannot raise an error."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend="aot_eager", **options))
    made = module(SLATEModule, compile=True)
    trainer(1).fit(made, TinyImages())
    with torch.no_grad():
        made.model.slot_attention.project_q.weight.fill_(torch.nan)
    with pytest.raises(Diverged, match="step 0: the first evaluation of the refinement is not finite"):
        trainer(1).fit(made, TinyImages())


def test_training_compiles_once(monkeypatch):
    """Although the temperature changes with every step."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend="aot_eager", **options))
    made = module(SLATEModule, compile=True, tau_steps=4)
    trainer(1).fit(made, TinyImages())
    with torch.compiler.set_stance("fail_on_recompile"):
        trainer(3).fit(made, TinyImages())


@pytest.mark.parametrize("settings", [{"tol": 1e-3}, {"gradient": "exact(gmres)"}])
def test_what_stops_by_what_it_finds_is_not_compiled(settings):
    with pytest.raises(UserError, match="compile: needs a fixed number of iterations"):
        module(SLATEModule, compile=True, **settings)
