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

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        # Validation and the logging of a step come after this hook, and Lightning takes them as done when it resumes
        # from here: so not at the end of an epoch, nor at the round numbers that are intervals. And not at every
        # step, because the ranks agree by a collective operation.
        step = trainer.global_step
        if step == self._last_step or step % CHECK_EVERY_STEPS != 1 or trainer.is_last_batch:
            return
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
