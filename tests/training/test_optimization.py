"""The optimiser's schedules as functions of the step, and their use in training."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import SlotJacobian
from implicit_slate.errors import UserError
from implicit_slate.training import SLATEModule
from implicit_slate.training.checkpoints import read_checkpoint
from implicit_slate.training.optimization import Optimization, Plateau, cosine
from tests.tiny import Memory
from tests.training.setting import STEADY, Squares, module, trainer

WARMUP = Optimization(warmup_steps=100, decay=None)
HALF_LIFE = Optimization(warmup_steps=None, decay="half_life", half_life=250)


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        (WARMUP, {0: 0.01, 1: 0.02, 49: 0.5, 99: 1, 100: 1, 10_000: 1}),
        (HALF_LIFE, {0: 1, 125: 0.5**0.5, 250: 0.5, 500: 0.25}),
        (Optimization(warmup_steps=None, decay=None), {0: 1, 10**6: 1}),
        (Optimization(warmup_steps=None, decay="plateau"), {0: 1, 10**6: 1}),
    ],
)
def test_warmup_and_half_life(settings, factors):
    assert {step: settings.main_factor(step) for step in factors} == pytest.approx(factors)


def test_plateau_halves_after_four_validations_without_a_better_loss():
    plateau, factors = Plateau(patience=4), []
    for loss in [5, 4, 4, 4, 4, 4, 3, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5]:
        plateau.update(loss)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (15_000, 0.55), (30_000, 0.1), (99_999, 0.1)])
def test_temperature(step, expected):
    assert cosine(step, 1.0, 0.1, 30_000) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["clip_norm", "warmup_steps", "learning_rate", "half_life", "patience"])
def test_a_setting_that_is_not_positive_is_refused_by_name(name):
    with pytest.raises(UserError, match=name):
        Optimization(**{name: -1})


class Record(L.Callback):
    """Records seed and images of every batch, and learning rates and largest clipped gradient value of every step."""

    def __init__(self):
        self.seeds, self.images, self.rates, self.largest = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.images.append(batch["image"])

    def on_before_backward(self, trainer, module, loss):
        self.seeds.append(torch.initial_seed())

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    def on_before_zero_grad(self, trainer, module, optimizer):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.largest.append(torch.nn.utils.get_total_norm(gradients, float("inf")).item())


def record(max_steps, optimization, best=float("inf"), **options) -> Record:
    recorded, made = Record(), module(SLATEModule, optimization=optimization)
    made.plateau.best = best
    trainer(max_steps, [recorded], **options).fit(made, Squares())
    return recorded


def test_groups_have_their_own_rates_and_only_the_main_one_warms_up():
    tricks = Optimization(learning_rate=1e-3, dvae_learning_rate=2e-3, warmup_steps=4, decay=None)
    rates = record(5, tricks).rates
    assert [step["main"] for step in rates] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert {step["dvae"] for step in rates} == {2e-3}


def test_clipping_bounds_the_largest_value_of_the_whole_gradient():
    clipped, free = (
        max(record(3, Optimization(clip_norm=clip, warmup_steps=None, decay=None)).largest) for clip in (0.05, None)
    )
    assert clipped <= 0.05 + 1e-6 < free


@pytest.mark.parametrize(("decay", "factor"), [("plateau", 0.5), (None, 1)])
def test_plateau_halving_reaches_both_groups_if_it_is_on(decay, factor):
    tricks = Optimization(learning_rate=1e-3, warmup_steps=None, decay=decay, patience=1)
    recorded = record(4, tricks, best=-1.0, val_check_interval=2)  # no validation will be better
    assert recorded.rates[-1] == pytest.approx({"main": factor * 1e-3, "dvae": factor * 3e-4})


def test_what_is_resumed_from_a_validation_s_checkpoint_knows_what_that_validation_found(tmp_path):
    made = module(SLATEModule, optimization=Optimization(decay="plateau", patience=2))
    made.plateau.best = -1.0  # no validation will be better
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    trainer(4, [saving], val_check_interval=1, enable_checkpointing=True).fit(made, Squares())
    found = [read_checkpoint(tmp_path / f"step={step}.ckpt")["plateau"] for step in (1, 2, 3)]
    assert [(state["stagnant"], state["factor"]) for state in found] == [(1, 1.0), (0, 0.5), (1, 0.5)]
    patient = module(SLATEModule, optimization=Optimization(decay="plateau", patience=100))
    trainer(3).fit(patient, Squares(), ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert vars(patient.plateau) == {"best": -1.0, "stagnant": 1, "factor": 0.5, "patience": 100}


def test_an_epoch_that_is_cut_short_is_followed_by_other_images():
    cut, whole = record(5, STEADY, limit_train_batches=2), record(5, STEADY)
    assert all(torch.equal(a, b) for a, b in zip(cut.images, whole.images, strict=True))


def test_lightning_s_own_clipping_is_refused_for_ours():
    with pytest.raises(UserError, match="trainer.gradient_clip_val=1.0: .*model.optimization.clip_norm"):
        trainer(1, gradient_clip_val=1.0).fit(module(SLATEModule), Squares())


def test_every_batch_has_its_own_noise_and_images_and_every_step_its_rate():
    warmup = replace(STEADY, learning_rate=1.0, warmup_steps=10)
    each, accumulated = record(6, warmup), record(2, warmup, accumulate_grad_batches=3)
    assert len(set(accumulated.seeds)) == 6
    assert accumulated.seeds[::3] == each.seeds[:2]  # first micro-batches have the noise without accumulation
    assert all(torch.equal(a, b) for a, b in zip(each.images, accumulated.images, strict=True))
    assert [step["main"] for step in accumulated.rates] == pytest.approx([0.1, 0.2])
    assert each.seeds[:2] == [2918264622725855778, 8597659618385908031]  # fixed, so that results stay reproducible


def test_a_callback_measures_once_a_step():
    class Steps(Memory):
        def log_metrics(self, metrics, step=None):
            steps.extend([step] * ("jacobian/spectral_norm" in metrics))

    steps = []
    looking = [SlotJacobian(every_n_steps=1, num_images=2)]
    trainer(3, looking, accumulate_grad_batches=2, logger=Steps()).fit(module(SLATEModule), Squares())
    assert steps == [0, 1, 2, 3]
