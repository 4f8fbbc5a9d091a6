"""SlotJacobian, GradientNorm and Divergence while a tiny SLATE is trained."""

import re
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision

from callbacks import Diverged, Divergence, GradientNorm, Panels, SlotJacobian, slot_jacobian
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


def test_a_measurement_starts_from_the_last_vector_and_notices_when_another_has_become_the_largest(monkeypatch):
    rounds, measured = [], slot_jacobian.largest_singular_value

    def counted(*args, **options):
        found = measured(*args, **options)
        rounds.append(found.iterations)
        return found

    monkeypatch.setattr(slot_jacobian, "largest_singular_value", counted)
    spread, one = torch.linspace(1, 2, 40).square().view(1, 5, 8), torch.ones(1, 5, 8)
    one[0, 0, 0] = 2
    callback, slots, values = SlotJacobian(), torch.ones(2, 5, 8), []
    callback.latest = {"evaluations": 1.0}  # there were measurements before
    for scale in (spread, 1.01 * spread, one, one.flip(1, 2)):
        model = SimpleNamespace(refinement=lambda image, scale=scale: lambda z: scale * z)
        model.slot_attention = SimpleNamespace(solver=Solver("picard", 1))
        values.append(callback.measure(model, {"image": None}, slots, is_last=False)["jacobian/spectral_norm"])
    expected = torch.tensor([4.0, 4.04, 2.0, 2.0])[:, None].expand(4, 2)
    torch.testing.assert_close(torch.stack(values), expected, rtol=1e-4, atol=0)
    assert rounds[1] < rounds[0]


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


def test_a_run_that_is_stopped_leaves_its_window_to_the_run_that_resumes():
    def stop(trainer, *_):
        if trainer.global_step == 2:
            sys.exit(75)

    logger, norm = Memory(), GradientNorm(100)
    with pytest.raises(SystemExit):
        fit(module(), norm, LambdaCallback(on_train_batch_end=stop), logger=logger)
    assert "grad_norm" not in logger.scalars and norm.state_dict()["largest"] > 0


def test_with_a_gradient_scaler_the_weights_must_be_finite_but_not_every_gradient():
    def spoil(trainer, made, *_):
        if trainer.global_step == 2:
            torch.nn.init.constant_(made.model.dvae.decoder[-1].bias, torch.nan)

    def scaled(*callbacks):
        scaling = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        fit(module(), *callbacks, Divergence(), max_steps=4, plugins=[scaling])

    scaled(Spike(1, float("inf")))  # a step that is skipped
    with pytest.raises(Diverged, match="at step 2"):
        scaled(LambdaCallback(on_train_batch_start=spoil))


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
