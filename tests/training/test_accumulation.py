"""Gradients accumulated over several batches, each with its own noise and images."""

from dataclasses import replace

import lightning as L
import pytest
import torch

from callbacks import SlotJacobian
from implicit_slate.training import SLATEModule
from tests.tiny import Memory
from tests.training.setting import STEADY, Squares, module, trainer


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


def test_every_batch_has_its_own_noise_and_images_and_every_step_its_rate():
    each, accumulated = Record(), Record()
    warmup = replace(STEADY, learning_rate=1.0, warmup_steps=10)
    trainer(6, [each]).fit(module(SLATEModule, optimization=warmup), Squares())
    trainer(2, [accumulated], accumulate_grad_batches=3).fit(module(SLATEModule, optimization=warmup), Squares())
    assert len(set(accumulated.seeds)) == 6
    assert accumulated.seeds[::3] == each.seeds[:2]  # the first batch of a step has the noise of that step
    assert all(torch.equal(a, b) for a, b in zip(each.images, accumulated.images, strict=True))
    assert accumulated.rates == pytest.approx([0.1, 0.2])
    assert each.seeds[:2] == [2918264622725855778, 8597659618385908031]  # as in earlier versions


def test_a_callback_measures_once_a_step():
    class Steps(Memory):
        def log_metrics(self, metrics, step=None):
            steps.extend([step] * ("jacobian/spectral_norm" in metrics))

    steps = []
    looking = [SlotJacobian(every_n_steps=1, num_images=2)]
    trainer(3, looking, accumulate_grad_batches=2, logger=Steps()).fit(module(SLATEModule), Squares())
    assert steps == [0, 1, 2, 3]
