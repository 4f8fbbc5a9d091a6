"""Training steps of all models with slots, and the Jacobian regulariser that any of them may use."""

from dataclasses import replace

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping

from implicit_slate.errors import UserError
from implicit_slate.fixed_point import jacobian_regularizer
from implicit_slate.training import Optimization, PropertyModule, SLATEModule, SpatialBroadcastModule
from tests.fixed_point.maps import ALL_MODES
from tests.tiny import TinyImages
from tests.training.setting import SIZES, START, STEADY, Squares, assert_same_weights, module, moved_by, trainer

KINDS = list(SIZES)
MODES = ["unrolled", "truncated(2)", "implicit", "neumann(2)", "phantom(3, 0.5)", "exact(gmres)", "bilevel"]


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [
        *((SpatialBroadcastModule, mode) for mode in MODES),
        *((PropertyModule, mode) for mode in ("unrolled", "implicit", "exact(gmres)", "bilevel")),
        *((SLATEModule, mode) for mode in ("unrolled", "implicit")),
    ],
)
def test_every_trained_parameter_moves_and_the_start_only_where_a_gradient_reaches_it(kind, gradient):
    made, run = module(kind, gradient=gradient), trainer(3)
    moved = moved_by(made, run, Squares())
    everything = {name for name, _ in made.named_parameters()} - {"model.slot_attention.norm_slots.bias"}
    assert everything - moved == (set() if gradient in ("unrolled", "bilevel") else START)
    assert run.callback_metrics["train/loss"].isfinite()
    assert "train/jacobian_regularizer" not in run.callback_metrics
    assert ("adjoint/products" in run.callback_metrics) is gradient.startswith("exact")


@pytest.mark.parametrize("gradient", ALL_MODES)
def test_every_mode_trains_under_mixed_precision(gradient):
    made, run = module(SLATEModule, gradient=gradient), trainer(2, precision="bf16-mixed")
    assert "model.slot_attention.project_k.weight" in moved_by(made, run, TinyImages())
    assert run.global_step == 2 and run.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize(
    ("solver", "gradient", "products"),
    [("broyden", "implicit", None), ("broyden", "exact(broyden, 5)", 5), ("anderson", "exact(broyden, 5)", 5)],
)
def test_other_solvers_train_and_the_products_of_a_backward_solve_are_counted(solver, gradient, products):
    run = trainer()
    run.fit(module(SpatialBroadcastModule, solver=solver, tol=1e-3, gradient=gradient), TinyImages())
    logged = run.callback_metrics
    assert logged["train/loss"].isfinite() and logged.get("adjoint/products") == products
    assert products is None or logged["adjoint/residual"] > 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SLATEModule, dict(optimization=Optimization(warmup_steps=4, decay="half_life", half_life=5), dropout=0.1)),
        (SpatialBroadcastModule, dict(jacobian_weight=0.1)),
        (PropertyModule, dict()),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, kind, options, accumulate):
    """Images, schedules and Adam's state continue where they were; all noise is a function of the step."""
    whole, resumed = module(kind, **options), module(kind, seed=9, **options)
    trainer(4, accumulate_grad_batches=accumulate).fit(whole, Squares())
    half = trainer(2, accumulate_grad_batches=accumulate)
    half.fit(module(kind, **options), Squares())
    half.save_checkpoint(tmp_path / "half.ckpt")
    rest = trainer(4, accumulate_grad_batches=accumulate)
    rest.fit(resumed, Squares(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert_same_weights(whole, resumed)


def test_resuming_in_float64_does_not_round_the_weights(tmp_path):
    half, rest = (trainer(1, precision="64-true") for _ in range(2))
    half.fit(module(SpatialBroadcastModule), TinyImages())
    half.save_checkpoint(tmp_path / "half.ckpt")
    rest.fit(module(SpatialBroadcastModule), TinyImages(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert_same_weights(half.lightning_module, rest.lightning_module)


class Count(Callback):
    """Logs the step number, as a user's callback might."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("step", trainer.global_step, on_step=False, on_epoch=True)


def test_what_others_log_and_monitor_is_as_lightning_has_it_without_a_progress_bar():
    options = dict(log_every_n_steps=100, limit_train_batches=5, check_val_every_n_epoch=1, val_check_interval=1.0)
    stopping = EarlyStopping("train/loss", patience=9, check_on_train_epoch_end=True)
    for callbacks in ([Count()], [Count(), stopping]):
        run = trainer(5, callbacks, **options)
        run.fit(module(SpatialBroadcastModule), Squares())
        assert run.callback_metrics["step"] == 3  # the mean of 1 to 5
    assert stopping.best_score.isfinite() and "train/loss" in run.progress_bar_metrics


LOGGED = {
    SLATEModule: {"cross_entropy", "mse", "loss", "code_perplexity", "codes_in_use"},
    SpatialBroadcastModule: {"mse", "loss"},
    PropertyModule: {"loss", "ap_inf", "ap_1", "ap_0.5", "ap_0.25", "ap_0.125"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_validation_and_test_log_the_same_twice(kind):
    made, data = module(kind), Squares()
    first, second = (trainer().validate(made, data, verbose=False)[0] for _ in range(2))
    assert first == second and first.keys() == {f"val/{name}" for name in LOGGED[kind]}
    tested = trainer().test(made, data, verbose=False)[0]
    assert tested == {name.replace("val/", "test/"): value for name, value in first.items()}
    if kind is SLATEModule:
        assert first["val/loss"] == pytest.approx(first["val/cross_entropy"] + first["val/mse"])
        assert 1 <= first["val/code_perplexity"] <= first["val/codes_in_use"] <= 12
    if kind is SpatialBroadcastModule:
        assert first["val/loss"] == pytest.approx(4 * first["val/mse"] / (3 * 16 * 16))


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        (SpatialBroadcastModule, {0: 1e-4, 4_999: 0.5**1.04999, 10_000: 0.5**0.1, 100_000: 0.5, 500_000: 0.5**5}),
        (PropertyModule, {0: 1e-3, 499: 0.5**1.00998, 1_000: 0.5**0.02, 50_000: 0.5, 150_000: 0.125}),
    ],
)
def test_the_default_optimisation_is_that_of_the_source(kind, factors):
    settings = kind(**SIZES[kind]).optimization
    assert settings.clip_norm is None and settings.learning_rate == 4e-4
    for step, factor in factors.items():
        assert settings.main_factor(step) == pytest.approx(factor)


def test_the_broadcast_model_learns_its_images():
    """Thirty steps on four images must halve the error."""
    made, data = module(SpatialBroadcastModule), TinyImages(num_images=4)
    first = trainer().validate(made, data, verbose=False)[0]
    trainer(30).fit(made, data)
    assert trainer().validate(made, data, verbose=False)[0]["val/mse"] < first["val/mse"] / 2


# The Jacobian regulariser.


def regularizer(made) -> float:
    """The regulariser for the first image, at slots in evaluation mode, averaged over a hundred fixed v."""
    made.eval()
    image = TinyImages().probe(1)["image"].expand(100, -1, -1, -1)
    with torch.no_grad():
        f = made.model.refinement(image)
        slots_init = made.model.sample_slots(1, torch.Generator().manual_seed(0)).expand(100, -1, -1)
        z = made.model.slot_attention.solver(f, slots_init).z
    return jacobian_regularizer(f, z, torch.Generator().manual_seed(0)).mean().item()


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("kind", [SpatialBroadcastModule, SLATEModule])
def test_the_regulariser_is_in_the_loss_and_makes_the_jacobian_small(kind, gradient):
    options = dict(gradient=gradient, optimization=replace(STEADY, learning_rate=1e-2))
    free, held = module(kind, **options), module(kind, **options, jacobian_weight=1e4)
    trainer(10).fit(free, TinyImages())
    run = trainer(10)
    run.fit(held, TinyImages())
    logged = run.callback_metrics["train/jacobian_regularizer"]
    assert run.callback_metrics["train/loss"] > 1e4 * logged > 0
    assert regularizer(held) < 0.5 * regularizer(free)


def test_the_gradient_of_the_regulariser_goes_through_the_step_alone():
    """It is the gradient of ‖vᵀJ‖²/D at detached slots, added to that of the loss."""
    made = module(SpatialBroadcastModule)
    losses = made.model.losses(TinyImages().probe(2)["image"])
    loss, solution, update = losses.loss, losses.solution, losses.update
    parameters = [p for p in made.parameters() if p.requires_grad]

    def gradient(value):
        return torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)

    torch.manual_seed(3)
    penalty = jacobian_regularizer(update, solution.z.detach()).mean()
    expected = [a + 0.5 * b for a, b in zip(gradient(loss), gradient(penalty), strict=True)]
    made.jacobian_weight, made.log_step = 0.5, lambda *_, **__: None
    torch.manual_seed(3)
    torch.testing.assert_close(list(gradient(made.log_training_loss(loss, solution, update))), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_bad_weight_is_refused(kind, weight):
    with pytest.raises(UserError, match="jacobian_weight=.*: expected a number of at least 0"):
        module(kind, jacobian_weight=weight)
