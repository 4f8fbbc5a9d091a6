"""Lightning's Trainer, with types that say which values its settings may have."""

from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    WeightAveraging,
)

from data_modules.processes import num_cores
from implicit_slate.allowed import (
    Checked,
    NonNegativeInt,
    PositiveInt,
    PositiveShare,
    Share,
    allows,
    is_known,
    restricted,
)
from implicit_slate.errors import UserError

PRECISIONS = (
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "32", "16", "bf16", "64",
)  # fmt: skip


def _is_accelerator(name: str) -> bool:
    return is_known("accelerator", name, ("auto", "gpu", *AcceleratorRegistry.available_accelerators()))


def _is_precision(name: str | int) -> bool:
    return is_known("precision", str(name), PRECISIONS)


def _are_devices(given: Any) -> bool:
    if isinstance(given, list):
        return bool(given) and allows(list[NonNegativeInt], given)
    text = str(given)
    return text in ("auto", "-1") or (text != "0" and all(index.strip().isdecimal() for index in text.split(",")))


if TYPE_CHECKING:
    AcceleratorName = str
    Precision = str | int
    CountOrEndless = int
    Devices = str | int | list[int]
else:
    AcceleratorName = restricted("AcceleratorName", str, "the name of an accelerator", _is_accelerator)
    Precision = restricted("Precision", None, "a precision, as 32-true", _is_precision)
    CountOrEndless = restricted(
        "CountOrEndless", int, "a positive whole number, or -1 for no end", lambda count: count >= 1 or count == -1
    )
    Devices = restricted("Devices", None, "a number of devices, their indices as [0, 1], or auto", _are_devices)


class LatestCheckpoint(ModelCheckpoint):
    """Lightning's default, one checkpoint from the last validation, but also written at the end of training.

    Training rarely ends right after a validation, and there may be no validation at all: epochs do not end, and
    `val_check_interval` is optional.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.on_validation_end(trainer, pl_module)  # does nothing if this step is already saved


class Trainer(Checked, L.Trainer):
    """Lightning's Trainer for experiment files, with the same settings, of which the common ones are checked.

    If no callback saves checkpoints, `LatestCheckpoint` is added.

    Raises:
        UserError: a setting outside its range, or devices that this machine does not have; names the setting.
    """

    def __init__(
        self,
        *,
        accelerator: AcceleratorName = "auto",
        devices: Devices = "auto",
        num_nodes: PositiveInt = 1,
        precision: Precision | None = None,
        max_epochs: CountOrEndless | None = None,
        max_steps: CountOrEndless = -1,
        limit_train_batches: PositiveInt | PositiveShare | None = None,
        limit_val_batches: NonNegativeInt | Share | None = None,
        limit_test_batches: NonNegativeInt | Share | None = None,
        val_check_interval: PositiveInt | PositiveShare | None = None,
        check_val_every_n_epoch: PositiveInt | None = 1,
        num_sanity_val_steps: CountOrEndless | NonNegativeInt | None = 0,
        log_every_n_steps: PositiveInt | None = None,
        accumulate_grad_batches: PositiveInt = 1,
        **options,
    ):
        for key in ("gradient_clip_val", "gradient_clip_algorithm"):
            if (clip := options.get(key)) is not None:
                raise UserError(f"trainer.{key}={clip}: has no effect here; give model.optimization.clip_norm")
        counts = isinstance(val_check_interval, int) and isinstance(limit_train_batches, int)
        if counts and check_val_every_n_epoch is not None and val_check_interval > limit_train_batches:
            raise UserError(
                f"val_check_interval={val_check_interval}: more than limit_train_batches={limit_train_batches}; "
                "check_val_every_n_epoch=null counts the batches of all epochs"
            )
        for key, count in (("val_check_interval", val_check_interval), ("limit_train_batches", limit_train_batches)):
            if isinstance(count, int) and count % accumulate_grad_batches:
                raise UserError(
                    f"trainer.{key}={count}: not a multiple of accumulate_grad_batches={accumulate_grad_batches}, "
                    "so it would end within a step"
                )
        kinds = ("cuda", "mps") if accelerator == "gpu" else (accelerator,)
        if accelerator != "auto" and not any(AcceleratorRegistry[kind]["accelerator"].is_available() for kind in kinds):
            raise UserError(f"trainer.accelerator={accelerator}: this machine has none")
        given = options.get("callbacks") or ()
        # Callbacks that average weights come last, so that all others see the weights that are being trained.
        callbacks = sorted(
            [given] if isinstance(given, Callback) else given,
            key=lambda callback: isinstance(callback, WeightAveraging),
        )
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            raise UserError("trainer.callbacks: GradientAccumulationScheduler: give trainer.accumulate_grad_batches")
        keeps = options.get("enable_checkpointing") is not False and not options.get("barebones")
        if keeps and not any(isinstance(callback, Checkpoint) for callback in callbacks):
            callbacks.append(LatestCheckpoint())
        options["callbacks"] = callbacks
        super().__init__(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            max_epochs=max_epochs,
            max_steps=max_steps,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=num_sanity_val_steps,
            log_every_n_steps=log_every_n_steps,
            accumulate_grad_batches=accumulate_grad_batches,
            **options,
        )
        if isinstance(self.accelerator, CPUAccelerator) and self.num_devices > num_cores():
            raise UserError(f"trainer.devices={devices}: this machine has {num_cores()} cores")
