"""The point from which a killed cell goes on."""

import os
import time
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

CHECK_EVERY_STEPS = 10


class ResumePoint(Checkpoint):
    """Keeps one checkpoint of the whole training state: every so many seconds, and at the end.

    Lightning's ModelCheckpoint writes through the system's temporary folder, and so can leave half a file when that
    is another file system; and it does not flush the logger, so events older than the checkpoint would be lost.
    """

    def __init__(self, path: str, every_seconds: float = 30.0):
        """`path` of the checkpoint; its folder is made."""
        self.path = Path(path)
        self.every_seconds = every_seconds
        self._last_time = time.monotonic()
        self._last_step = 0

    def on_train_start(self, trainer, pl_module) -> None:
        self._last_time, self._last_step = time.monotonic(), trainer.global_step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        # Here, and not at the end of a batch, all is done that the steps so far call for, validation included.
        if trainer.global_step == self._last_step or trainer.global_step % CHECK_EVERY_STEPS:
            return  # the ranks agree by a collective operation, which is not for every step
        due = time.monotonic() - self._last_time >= self.every_seconds
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save(trainer)

    def on_train_end(self, trainer, pl_module) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.experiment.flush()
        unfinished = self.path.with_name(f".{self.path.name}.part")
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            os.replace(unfinished, self.path)
        self._last_time, self._last_step = time.monotonic(), trainer.global_step
