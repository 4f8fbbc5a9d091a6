"""SlotJacobian, GradientNorm and Divergence while a tiny SLATE is trained."""

import re

import lightning as L
import pytest
import torch

from callbacks import Diverged, Divergence, GradientNorm, Panels, SlotJacobian
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Solver, dense_jacobian
from implicit_slate.training import Optimization
from tests.callbacks.fitting import fit, module, refinement
from tests.tiny import Memory, TinyImages


def dense_norm(model, callback):
    """The largest singular value of the dense Jacobian at the point where the callback measures."""
    f, _, z = refinement(model, callback)
    return torch.linalg.matrix_norm(dense_jacobian(f, z), 2)


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({"gradient": "unrolled"}, {"max_steps": 1}),
        ({"gradient": "implicit"}, {"max_steps": 12}),
        ({"solver": "broyden", "tol": 1e-4}, {}),
        ({"solver": "anderson", "tol": 1e-4}, {}),
        ({}, {"precision": "bf16-mixed"}),
        ({}, {"precision": "bf16-true"}),
    ],
)
def test_spectral_norm_is_the_dense_jacobian_s_where_the_solver_stops_in_float32(options, training):
    model, callback = module(**options), SlotJacobian(every_n_steps=100, num_images=3)
    scalars = fit(model, callback, **training)
    expected, last = dense_norm(model.float(), callback), training.get("max_steps", 2)
    assert scalars["jacobian/spectral_norm"][last] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert scalars["jacobian/spectral_norm_image_max"][last] == pytest.approx(expected.max().item(), rel=1e-4)
    if "precision" not in training:
        fresh = dense_norm(module(**options), callback).mean().item()
        assert scalars["jacobian/spectral_norm"][0] == pytest.approx(fresh, rel=1e-4)
    if "solver" in options:
        model.model.slot_attention.solver = Solver("picard", 3)
        assert dense_norm(model, callback).mean().item() != pytest.approx(expected.mean().item(), rel=1e-4)


def test_it_measures_at_its_cadence_and_once_the_radius():
    scalars = fit(module(), SlotJacobian(every_n_steps=2, num_images=2), max_steps=5)
    assert list(scalars["jacobian/spectral_norm"]) == [0, 2, 4, 5]
    assert list(scalars["jacobian/spectral_radius"]) == [5]
    assert scalars["evaluations"] == {0: 4.0}  # three iterations and the recorded application
    assert scalars["residual_image_max"][4] >= scalars["residual"][4] > 0


def test_a_compiled_module_is_measured_as_well():
    model, callback = module(), SlotJacobian(every_n_steps=100, num_images=3)
    scalars = fit(torch.compile(model, backend="eager"), callback)
    assert scalars["jacobian/spectral_norm"][2] == pytest.approx(dense_norm(model, callback).mean().item(), rel=1e-4)


def test_every_logger_hears_of_it():
    loggers = [Memory(), Memory()]
    fit(module(), SlotJacobian(every_n_steps=1, num_images=2), GradientNorm(every_n_steps=1), logger=loggers)
    for logger in loggers:
        assert list(logger.scalars["jacobian/spectral_norm"]) == [0, 1, 2]
        assert list(logger.scalars["grad_norm"]) == [1, 2]


class Spike(L.Callback):
    """Makes the gradient of one step a thousand times larger, or NaN."""

    def __init__(self, step, factor):
        self.step, self.factor = step, factor

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.step:
            for p in module.parameters():
                if p.grad is not None:
                    p.grad.mul_(self.factor)


def test_a_spike_of_one_step_is_seen_in_its_window_alone():
    calm = fit(module(), GradientNorm(every_n_steps=3), max_steps=9)["grad_norm"]
    spiky = fit(module(), Spike(4, 1000.0), GradientNorm(every_n_steps=3), max_steps=9)["grad_norm"]
    assert list(calm) == list(spiky) == [3, 6, 9]
    assert spiky[6] > 100 * calm[6]
    assert spiky[3] == pytest.approx(calm[3])


def test_the_norm_is_taken_before_clipping():
    model = module()
    model.optimization = Optimization(clip_norm=1e-6, warmup_steps=None, decay=None)
    assert fit(model, GradientNorm(1), max_steps=1)["grad_norm"][1] > 1e-3


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_divergence_names_the_step_and_keeps_the_window(factor):
    model = module()
    with pytest.raises(Diverged) as diverged:
        fit(model, Spike(4, factor), GradientNorm(100), Divergence(), max_steps=9)
    assert diverged.value.step == 4
    assert diverged.value.scalars["grad_norm"][4] > 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Bare(TinyImages):
    @property
    def probe(self):
        raise AttributeError


@pytest.mark.parametrize(("data", "found"), [(Bare(), "Bare has none"), ([TinyImages().probe(4)], "there is none")])
@pytest.mark.parametrize("callback", [SlotJacobian, Panels])
def test_data_without_probe_images_is_one_line(callback, data, found):
    needed = "needs a data module with probe(num_images), a batch of validation images"
    with pytest.raises(UserError, match=f"^trainer.callbacks: {callback.__name__} {re.escape(needed)}; {found}$"):
        fit(module(), callback(), data=data)
