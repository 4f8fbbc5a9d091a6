"""What a training step of the broadcast model does; and the Jacobian regulariser, which both models may have."""

from dataclasses import replace

import lightning as L
import pytest
import torch

from callbacks import GradientNorm
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import jacobian_regularizer
from implicit_slate.training import Optimization, SLATEModule, SpatialBroadcastModule
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES, TinyImages

STEADY = Optimization(learning_rate=1e-3, clip_norm=None, warmup_steps=None, decay=None)
START = {"model.slot_attention.slot_mu", "model.slot_attention.slot_log_sigma"}


def module(kind=SpatialBroadcastModule, seed=0, **options):
    torch.manual_seed(seed)
    sizes = SLATE_SIZES if kind is SLATEModule else BROADCAST_SIZES
    return kind(**{"optimization": STEADY, **sizes, **options})


def trainer(max_steps=2, callbacks=()):
    return L.Trainer(
        accelerator="cpu", max_steps=max_steps, max_epochs=-1, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        log_every_n_steps=1, val_check_interval=1000, check_val_every_n_epoch=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "gradient", ["unrolled", "truncated(2)", "implicit", "neumann(2)", "phantom(3, 0.5)", "exact(gmres)", "bilevel"]
)
def test_two_steps_in_every_mode_move_what_is_trained(gradient):
    model = module(gradient=gradient)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = trainer()
    run.fit(model, TinyImages())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # With one slot head the gradient of norm_slots.bias is zero but for rounding, so nothing is said about it.
    unmoved = before.keys() - moved - {"model.slot_attention.norm_slots.bias"}
    assert unmoved == (set() if gradient in ("unrolled", "bilevel") else START)
    assert run.callback_metrics["train/loss"].isfinite()
    assert "train/jacobian_regularizer" not in run.callback_metrics


@pytest.mark.parametrize(
    ("solver", "gradient"), [("broyden", "implicit"), ("broyden", "exact(broyden, 7)"), ("anderson", "exact(dense)")]
)
def test_other_solvers_train(solver, gradient):
    run = trainer()
    run.fit(module(solver=solver, tol=1e-3, gradient=gradient), TinyImages())
    assert run.callback_metrics["train/loss"].isfinite()


def test_learned_queries_are_trained_by_bilevel():
    model = module(gradient="bilevel", slot_init="queries")
    before = model.model.slot_attention.queries.detach().clone()
    trainer().fit(model, TinyImages())
    assert not torch.equal(model.model.slot_attention.queries, before)


def test_it_learns_its_images():
    """Thirty steps on four images halve the error."""
    model, data = module(), TinyImages(num_images=4)
    first = trainer().validate(model, data, verbose=False)[0]
    trainer(30).fit(model, data)
    last = trainer().validate(model, data, verbose=False)[0]
    assert last["val/mse"] < first["val/mse"] / 2


def test_validation_logs_both_scales_and_is_the_same_twice():
    model = module()
    first, second = (trainer().validate(model, TinyImages(), verbose=False)[0] for _ in range(2))
    assert first == second and first.keys() == {"val/mse", "val/loss"}
    assert first["val/loss"] == pytest.approx(4 * first["val/mse"] / (3 * 16 * 16))


def test_the_default_optimisation_is_the_source_s():
    settings = SpatialBroadcastModule(**BROADCAST_SIZES).optimization
    assert settings.clip_norm is None and settings.learning_rate == 4e-4
    factors = {0: 1e-4, 4_999: 0.5 * 0.5**0.04999, 10_000: 0.5**0.1, 100_000: 0.5, 500_000: 0.5**5}
    for step, factor in factors.items():
        assert settings.main_factor(step) == pytest.approx(factor)


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    data, whole = dict(num_images=4), module(jacobian_weight=0.1)
    trainer(6).fit(whole, TinyImages(**data))
    half = trainer(3)
    half.fit(module(jacobian_weight=0.1), TinyImages(**data))
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module(seed=99, jacobian_weight=0.1)
    trainer(6).fit(resumed, TinyImages(**data), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


# The Jacobian regulariser.

KINDS = [SpatialBroadcastModule, SLATEModule]


def regularizer(model) -> float:
    """Of the first image, at the slots of an evaluation, with a fixed v: the mean over a hundred of them."""
    model.eval()
    image = TinyImages().probe(1)["image"].expand(100, -1, -1, -1)
    with torch.no_grad():
        f = model.model.refinement(image)
        slots_init = model.model.sample_slots(1, torch.Generator().manual_seed(0)).expand(100, -1, -1)
        z = model.model.slot_attention.solver(f, slots_init).z
    return jacobian_regularizer(f, z, torch.Generator().manual_seed(0)).mean().item()


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_regulariser_is_in_the_loss_and_makes_the_jacobian_small(kind, gradient):
    options = dict(gradient=gradient, optimization=replace(STEADY, learning_rate=1e-2))
    free, held = module(kind, **options), module(kind, **options, jacobian_weight=1e4)
    trainer(10).fit(free, TinyImages())
    run = trainer(10)
    run.fit(held, TinyImages())
    logged = run.callback_metrics["train/jacobian_regularizer"]
    assert run.callback_metrics["train/loss"] > 1e4 * logged > 0
    assert regularizer(held) < 0.5 * regularizer(free)


@pytest.mark.parametrize("kind", KINDS)
def test_the_regulariser_s_gradient_goes_through_the_step_alone(kind):
    """Autograd of ‖vᵀJ‖²/D at detached slots, added to that of the loss."""
    model = module(kind)
    if kind is SLATEModule:
        model.dvae_is_frozen = True
        model.model.dvae.requires_grad_(False)
        image = TinyImages().probe(2)["image"]
        prediction = model.model.eval().predict(model.model.tokenize(image))
        solution, update, loss = prediction.solution, prediction.update, prediction.cross_entropy
    else:
        losses = model.model.losses(TinyImages().probe(2)["image"])
        solution, update, loss = losses.solution, losses.update, losses.loss
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(value):
        return torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)

    torch.manual_seed(3)
    penalty = jacobian_regularizer(update, solution.z.detach()).mean()
    expected = [a + 0.5 * b for a, b in zip(gradient(loss), gradient(penalty), strict=True)]
    model.jacobian_weight = 0.5
    model.log, model.optimizers = lambda *_, **__: None, lambda: torch.optim.Adam(parameters)
    torch.manual_seed(3)
    torch.testing.assert_close(list(gradient(model.log_training_loss(loss, solution, update))), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_bad_weight_is_refused(kind, weight):
    with pytest.raises(UserError, match="jacobian_weight=.*: a number from 0 on"):
        module(kind, jacobian_weight=weight)


def test_gradient_norm_knows_the_model():
    norms = GradientNorm(every_n_steps=100)
    largest = []
    norms._log = lambda trainer: largest.append(float(norms._largest))
    trainer(2, [norms]).fit(module(), TinyImages())
    assert largest[-1] > 0
