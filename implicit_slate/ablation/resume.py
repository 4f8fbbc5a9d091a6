"""The state from which a killed cell resumes: the training state, the curves and the training time so far."""

import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger

from implicit_slate.ablation.tensorboard import THROUGHPUT, flush_events, layout
from implicit_slate.files import replace_durably, write_atomically
from implicit_slate.measures import LOSSES, summarise
from implicit_slate.processes import BUSY, STOP_SIGNALS
from implicit_slate.run_folder import LAST

CHECK_EVERY_STEPS = 10
LARGEST_SHARE = 0.01
TELL_SECONDS = 1.0

Curves = dict[str, dict[int, float]]
"""A mapping from tag to step to value, ordered by step."""


class CurveLogger(TensorBoardLogger):
    """A TensorBoard logger that also keeps every scalar in memory, so that no result depends on event files.

    Values are rounded to 32 bits, as in TensorBoard. TensorBoard also gets the training throughput and the layout of
    its opening page, but not the epoch and the constant number of evaluations, whose curves show nothing.
    """

    def __init__(self, save_dir: str, **options):
        super().__init__(save_dir, **options)
        self.curves: Curves = {}
        self._charted: set[str] = set()
        self._last: tuple[int, float] | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        shown = {tag: value for tag, value in metrics.items() if tag not in ("epoch", "evaluations")}
        now, last = time.monotonic(), self._last
        if last is None or step > last[0]:
            self._last = step, now
            if last is not None:
                shown[THROUGHPUT] = (step - last[0]) / max(now - last[1], 1e-9)
        super().log_metrics(shown, step)
        if new := shown.keys() - self._charted:
            self._charted |= new
            self.experiment.add_custom_scalars(layout(self._charted))
        for tag, value in metrics.items():
            self.curves.setdefault(tag, {})[step] = float(np.float32(value))


class ResumePoint(Checkpoint):
    """Saves all that a killed cell needs to resume to the trainer's `default_root_dir`, and reports progress.

    `checkpoints/last.ckpt` has the training state, the curves and the training time so far. It is written at the end
    and every `every_seconds`, but less often if that would take more than 1% of the time. `curves.csv` is written with
    it, for people and the report. Both are flushed to disk before they replace the old files, so a kill or a power cut
    loses some seconds of training and nothing else. (Lightning's ModelCheckpoint writes through the system's temporary
    folder, so it can leave half a file if that is on another file system.)

    On a stop signal it saves a checkpoint at the next step where that is possible, and ends the process with status
    `BUSY`.

    Two limits: if `log_every_n_steps` is 1, a resumed cell lacks the last point logged before the stop; and if an epoch
    has a single step, no checkpoint is possible before the end. (Our data modules' epochs do not end.)

    `progress.json` shows the progress, with the keys of `result.json`; it is written at most once per second.
    """

    def __init__(self, every_seconds: float = 10.0):
        self.every_seconds = every_seconds
        self._curves: Curves = {}
        self._earlier_seconds = 0.0
        self._begin: float | None = None
        self._begin_step = self._last_step = 0
        self._last_time = self._told = 0.0
        self._cost = 0.0
        self._asked_to_stop = False

    @property
    def seconds(self) -> float:
        """Training time of all sessions, including validation; steps repeated after a kill count once."""
        return self._earlier_seconds + (0.0 if self._begin is None else time.monotonic() - self._begin)

    def state_dict(self) -> dict[str, Any]:
        return {"curves": self._curves, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._curves, self._earlier_seconds = state_dict["curves"], state_dict["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module) -> None:
        # The logger adds to this dictionary from here on, so its values are in the next checkpoint.
        trainer.logger.curves = self._curves

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        self._begin = self._last_time = time.monotonic()
        self._begin_step = self._last_step = trainer.global_step
        self._tell(trainer)
        for number in STOP_SIGNALS:  # Lightning restores the previous handlers after training
            signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, *signal_and_frame) -> None:
        self._asked_to_stop = True

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx) -> None:
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._tell(trainer)
        # Lightning validates and logs after this hook, but when resuming from a checkpoint made here, it assumes that
        # both are done. So save neither at the end of an epoch, nor at steps with validation or logging. Do not check
        # at every step, because the ranks agree by a collective operation.
        step, interval = trainer.global_step, trainer.log_every_n_steps
        is_new, self._last_step = step != self._last_step, step  # with accumulation, only the last batch ends a step
        is_time = step % CHECK_EVERY_STEPS == 1 or (self._asked_to_stop and trainer.world_size == 1)
        if not is_new or not is_time or trainer.is_last_batch:
            return
        batches = batch_idx + 1  # Lightning counts batches up to a validation, within the epoch or over all epochs
        if trainer.check_val_every_n_epoch is None:
            batches = step * trainer.accumulate_grad_batches
        if batches % trainer.val_check_batch == 0 or step % interval == 0 < interval - 1:
            return
        due = time.monotonic() - self._last_time >= max(self.every_seconds, self._cost / LARGEST_SHARE)
        if trainer.strategy.reduce_boolean_decision(due or self._asked_to_stop, all=False):
            self._save(trainer)
            if trainer.strategy.reduce_boolean_decision(self._asked_to_stop, all=False):
                print(f"stopped by a signal at step {step}", flush=True)
                sys.exit(BUSY)

    def on_train_end(self, trainer: Trainer, pl_module) -> None:
        self._earlier_seconds, self._begin = self.seconds, None
        self._save(trainer)

    def _tell(self, trainer: Trainer) -> None:
        if self._told:
            _end_where_gone(trainer)
        self._told = time.monotonic()
        if trainer.is_global_zero:
            steps = trainer.global_step - self._begin_step
            progress = {
                "step": trainer.global_step,
                "max_steps": trainer.max_steps,
                "measures": summarise(self._curves),
                "validations": validations(self._curves),
                "seconds": self.seconds,
                "steps_per_second": steps / max(self._told - self._begin, 1e-9),
            }
            write_atomically(Path(trainer.default_root_dir) / "progress.json", json.dumps(progress), durable=False)

    def _save(self, trainer: Trainer) -> None:
        _end_where_gone(trainer)
        begin = time.monotonic()
        path = Path(trainer.default_root_dir) / LAST
        unfinished = path.with_name(f".{path.name}.part")
        try:
            trainer.save_checkpoint(unfinished, weights_only=False)
        except BaseException:
            unfinished.unlink(missing_ok=True)  # otherwise a full disk would stay full
            raise
        if trainer.is_global_zero:
            flush_events(trainer.logger, path.parent.parent)  # events before the checkpoint are not written again
            replace_durably(unfinished, path)
            write_curves(path.parent.parent, self._curves)
        self._last_time = time.monotonic()
        self._cost = self._last_time - begin


def _end_where_gone(trainer: Trainer) -> None:
    """End this process if the cell's folder is gone: writing would create a new one at the old place of a moved run."""
    if trainer.is_global_zero and not Path(trainer.default_root_dir).exists():
        sys.exit(f"{trainer.default_root_dir}: is gone; was the run moved?")


def validations(curves: Curves) -> list[tuple[int, float]]:
    """Step and loss of every validation so far."""
    return next((sorted(curves[tag].items()) for tag in LOSSES if tag in curves), [])


def write_curves(folder: Path, curves: Curves) -> None:
    """Write `curves.csv`, with one line of tag, step and value for each point."""
    points = [(tag, step, value) for tag, curve in curves.items() for step, value in sorted(curve.items())]
    table = pd.DataFrame(points, columns=["tag", "step", "value"])
    write_atomically(folder / "curves.csv", table.to_csv(index=False, na_rep="nan"))
