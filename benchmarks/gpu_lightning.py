"""Measurements of `benchmarks.gpu` for training with Lightning and for the callbacks."""

import logging
import tempfile
import time
import warnings
from functools import partial

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.common import DEVICE, synchronize
from benchmarks.gpu_sections import Parts, Variant, hours, seconds_of
from benchmarks.gpu_worker import Row, Scale
from benchmarks.slot_jacobian import CADENCE
from benchmarks.training_step import GRADIENTS
from callbacks import Divergence, GradientNorm, SlotJacobian, SlotUsage
from callbacks.probe import Probe
from data_modules import MirrorScenes
from implicit_slate import SLATE
from implicit_slate.training import SLATEModule
from implicit_slate.training.precision import fastest_precision

WARM_UP = 10
"""Steps of `fit` before timing starts."""


def measurements(scale: Scale) -> Parts:
    """The cost of one measurement of a callback, in training steps."""

    def measure(callback: Probe) -> Row:
        torch.manual_seed(0)
        model = SLATE(**scale.sizes).to(DEVICE).eval()
        data = MirrorScenes(model.image_size)
        data.setup()
        batch = {name: value.to(DEVICE) for name, value in data.probe(callback.num_images).items()}
        slots = model.sample_slots(callback.num_images).detach()
        run = partial(callback.measure, model, batch, slots, is_last=False)
        run()  # warm-up; also keeps the vector from which the next measurement of a Jacobian starts
        seconds = seconds_of(run, scale, repeats=1)
        step = Variant(bfloat16=fastest_precision() != "32-true").make(scale, "implicit")
        step()
        step_seconds = seconds_of(step, scale, scale.steps)
        return {
            "measurement ms": 1e3 * seconds, "step ms": 1e3 * step_seconds, "in steps": seconds / step_seconds,
            f"% of training, every {CADENCE} steps": 100 * seconds / step_seconds / CADENCE,
        }  # fmt: skip

    return {
        f"{type(callback).__name__}, {callback.num_images} images": partial(measure, callback)
        for callback in (SlotJacobian(), SlotUsage())
    }


class Clock(L.Callback):
    """Seconds for `steps` steps after the warm-up, including what earlier callbacks do at the end of each step."""

    def __init__(self, steps: int):
        self.last, self.seconds = WARM_UP + steps, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_step in (WARM_UP, self.last):
            synchronize()
            self.seconds = time.perf_counter() - self.seconds


def fit(scale: Scale) -> Parts:
    """Training steps by `Trainer.fit`, compared with a bare loop."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    precision = fastest_precision()
    data = MirrorScenes(scale.sizes["image_size"], scale.batch_size)

    def through_fit(gradient: str) -> float:
        clock = Clock(scale.fit_steps)
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                max_steps=clock.last + 1,  # so that measurements at the end of training are not timed
                callbacks=[GradientNorm(100), Divergence(), clock],  # no Probe, as its first measurement is in no step
                precision=precision, devices=1, logger=TensorBoardLogger(folder), log_every_n_steps=100,
                use_distributed_sampler=False, limit_val_batches=0, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(SLATEModule(**scale.sizes, gradient=gradient), datamodule=data)
        return clock.seconds / scale.fit_steps

    def measure(gradient: str) -> Row:
        step = Variant(bfloat16=precision != "32-true", compiled=DEVICE == "cuda").make(scale, gradient)  # as in `fit`
        for _ in range(3):
            step()
        bare_seconds = seconds_of(step, scale, scale.steps)
        fit_seconds = through_fit(gradient)
        return {
            "bare loop ms": 1e3 * bare_seconds,
            "fit ms": 1e3 * fit_seconds,
            "fit steps/s": 1 / fit_seconds,
            "above bare, %": 100 * (fit_seconds / bare_seconds - 1),
            **hours(fit_seconds),
        }

    return {f"{precision}, {gradient}": partial(measure, gradient) for gradient in reversed(GRADIENTS)}
