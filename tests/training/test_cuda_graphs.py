"""Losses recorded as CUDA graphs are the losses, with their gradients; without a GPU, with imitated graphs."""

import copy
from functools import partial

import pytest
import torch

from implicit_slate.models import SLATE
from implicit_slate.training import SLATEModule, slate_module
from implicit_slate.training.compiling import INDUCTOR_OPTIONS, compile_losses
from implicit_slate.training.cuda_graphs import CUDAGraphs
from tests.tiny import SLATE_SIZES, TinyImages
from tests.training import graphs_on_cpu
from tests.training.setting import module, trainer


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    torch._dynamo.reset()
    if request.param == "cpu":
        graphs_on_cpu.imitate(monkeypatch)
    return request.param


def images(count, device):
    return TinyImages().probe(count)["image"].to(device)


def gradients(model, losses, seed, *inputs, bfloat16=True):
    """{name: value} of the losses and of their parameters' gradients."""
    model.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast(inputs[0].device.type, torch.bfloat16, bfloat16):
        found = losses(*inputs)
    values = {name: getattr(found, name) for name in ("cross_entropy", "mse") if hasattr(found, name)}
    sum((2 + i) * value for i, value in enumerate(values.values())).backward()
    values |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach().clone() for name, value in values.items()}


def difference(found, expected):
    """The largest relative difference, and the name of what differs."""
    assert found.keys() == expected.keys() and len(expected) > 40
    return max((float((found[name] - x).norm() / (x.norm() + 1e-3)), name) for name, x in expected.items())


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("name", ["losses", "predict"])
def test_losses_and_gradients_are_the_same_for_the_same_noise(device, name, gradient):
    """With dropout and random initial slots. A batch of another size is recorded, too."""
    torch.manual_seed(0)
    model = SLATE(**SLATE_SIZES | {"dropout": 0.1}, gradient=gradient).to(device)
    losses = compile_losses(getattr(model, name), options=INDUCTOR_OPTIONS)
    graphs = CUDAGraphs(model, losses)
    for seed, count in enumerate((4, 4, 3, 4)):
        inputs = (images(count, device),) if name == "losses" else (model.tokenize(images(count, device)),)
        expected = gradients(model, losses, seed, *inputs)
        assert difference(gradients(model, graphs, seed, *inputs), expected) < (0.01,)
        assert difference(gradients(model, graphs, seed + 100, *inputs), expected) > (0.01,)


def test_without_noise_they_are_those_of_the_plain_code(device):
    torch.manual_seed(0)
    model = SLATE(**SLATE_SIZES, slot_init="queries").to(device).eval()
    graphs = CUDAGraphs(model, compile_losses(model.losses, options=INDUCTOR_OPTIONS))
    expected = gradients(model, model.losses, 0, images(4, device), bfloat16=False)
    for _ in range(2):  # convolutions round to TF32 in different ways
        assert difference(gradients(model, graphs, 0, images(4, device), bfloat16=False), expected) < (0.02,)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_training_is_the_same(device, monkeypatch, precision):
    weights = []
    for graphs in (CUDAGraphs, lambda model, losses: losses):
        monkeypatch.setattr(slate_module, "CUDAGraphs", graphs)
        torch._dynamo.reset()
        made = module(SLATEModule, dropout=0.1)
        if device == "cpu":
            monkeypatch.setattr(made, "on_fit_start", partial(record, made))
        trainer(5, accelerator=device, devices=1, precision=precision).fit(made, TinyImages())
        weights.append({name: p.detach().cpu() for name, p in made.named_parameters()})
        copy.deepcopy(made)  # graphs, which do not stay in the module, cannot be copied
    assert difference(*weights) < (0.01,)


def record(made):
    """What `SLATEModule` does on a GPU."""
    for name in ("losses", "predict"):
        setattr(made, f"_{name}", slate_module.CUDAGraphs(made.model, compile_losses(getattr(made.model, name))))
