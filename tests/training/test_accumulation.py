"""Gradients accumulated over several batches, of which each one has its own noise and images."""

from dataclasses import replace

import lightning as L
import pytest
import torch

from callbacks import SlotJacobian
from implicit_slate.training import Optimization, SLATEModule
from tests.tiny import SLATE_SIZES, Memory
from tests.training.test_property_module import Squares

STEADY = Optimization(warmup_steps=None, decay=None)


def module(**options):
    torch.manual_seed(0)
    return SLATEModule(**{"optimization": STEADY, **SLATE_SIZES, "dropout": 0.1, **options})


class Record(L.Callback):
    """The seed and images of every batch, and the main group's rate at every step of the optimiser."""

    def __init__(self):
        self.seeds, self.images, self.rates = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.images.append(batch["image"])

    def on_before_backward(self, trainer, module, loss):
        self.seeds.append(torch.initial_seed())

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[-1]["lr"])


def fit(model, max_steps, accumulate=1, callbacks=(), logger=False, **options):
    run = L.Trainer(
        accelerator="cpu", max_steps=max_steps, max_epochs=-1, logger=logger, callbacks=list(callbacks),
        accumulate_grad_batches=accumulate, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=1000, check_val_every_n_epoch=None,
        use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(model, Squares(properties=False), **options)
    return run


def test_every_batch_has_its_own_noise_and_images_and_every_step_its_rate():
    each, accumulated = Record(), Record()
    warmup = replace(STEADY, learning_rate=1.0, warmup_steps=10)
    fit(module(optimization=warmup), 6, callbacks=[each])
    fit(module(optimization=warmup), 2, accumulate=3, callbacks=[accumulated])
    assert len(set(accumulated.seeds)) == 6
    assert all(torch.equal(a, b) for a, b in zip(each.images, accumulated.images, strict=True))
    assert accumulated.rates == pytest.approx([0.1, 0.2])
    assert each.seeds[:2] == accumulated.seeds[::3]  # the first batch of a step has the noise of that step


def test_noise_is_what_it_was_in_earlier_versions():
    record = Record()
    fit(module(), 2, callbacks=[record])
    assert record.seeds == [2918264622725855778, 8597659618385908031]


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    whole, resumed = module(), module()
    fit(whole, 4, accumulate=2)
    fit(module(), 2, accumulate=2).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, 4, accumulate=2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_callback_measures_once_a_step():
    class Steps(Memory):
        def log_metrics(self, metrics, step=None):
            if "jacobian/spectral_norm" in metrics:
                steps.append(step)

    steps = []
    fit(module(), 3, accumulate=2, callbacks=[SlotJacobian(every_n_steps=1, num_images=2)], logger=Steps())
    assert steps == [0, 1, 2, 3]
