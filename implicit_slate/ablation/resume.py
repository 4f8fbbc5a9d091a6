"""The point from which a killed cell goes on."""

import os
import time
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

CHECK_EVERY_STEPS = 10
LARGEST_SHARE = 0.01


class ResumePoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt`, the whole training state, in the trainer's `default_root_dir`.

    It is written every `every_seconds`, but less often if that took more than 1% of the time, and at the end.

    Lightning's ModelCheckpoint writes through the system's temporary folder, and so can leave half a file when that
    is another file system; and it does not flush the logger, so events older than the checkpoint would be lost.
    """

    def __init__(self, every_seconds: float = 10.0):
        self.every_seconds = every_seconds
        self._last_time = time.monotonic()
        self._last_step = 0
        self._cost = 0.0

    def on_train_start(self, trainer, pl_module) -> None:
        self._last_time, self._last_step = time.monotonic(), trainer.global_step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        # Here, and not at the end of a batch, all is done that the steps so far call for, validation included.
        if trainer.global_step == self._last_step or trainer.global_step % CHECK_EVERY_STEPS:
            return  # the ranks agree by a collective operation, which is not for every step
        due = time.monotonic() - self._last_time >= max(self.every_seconds, self._cost / LARGEST_SHARE)
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save(trainer)

    def on_train_end(self, trainer, pl_module) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        begin = time.monotonic()
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.experiment.flush()
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        unfinished = path.with_name(f".{path.name}.part")
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            os.replace(unfinished, path)
        self._last_time, self._last_step = time.monotonic(), trainer.global_step
        self._cost = self._last_time - begin
