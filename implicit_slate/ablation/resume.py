"""The point from which a killed cell resumes: the training state, the curves and the training time so far."""

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

from implicit_slate.ablation.cell import BUSY, STOP_SIGNALS
from implicit_slate.ablation.tensorboard import THROUGHPUT, flush_events, layout
from implicit_slate.files import replace_durably, write_atomically
from implicit_slate.measures import LOSSES, summarise
from implicit_slate.run_folder import LAST

CHECK_EVERY_STEPS = 10
LARGEST_SHARE = 0.01
TELL_SECONDS = 1.0

Curves = dict[str, dict[int, float]]
"""Tag to step to value, in the order of the steps."""


class CurveLogger(TensorBoardLogger):
    """TensorBoard's logger that also keeps every scalar, so that no result depends on event files.

    Values are rounded to 32 bits, as TensorBoard stores them. TensorBoard also gets the rate of training and the layout
    of its opening page, but not what tells nothing over training: the epoch, and the constant number of evaluations.
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
    """Keeps all that a killed cell needs to resume, in the trainer's `default_root_dir`, and says how far it is.

    `checkpoints/last.ckpt` is the training state, the curves and the training time so far. It is written every
    `every_seconds`, but less often if that took more than 1% of the time, and at the end; `curves.csv` beside it, for
    people and the report. Both are on the disk before they replace what was there, so a kill or a power cut loses some
    seconds of training and nothing else. (Lightning's ModelCheckpoint writes through the system's temporary folder, and
    so can leave half a file when that is another file system.)

    Asked to stop by a signal, it makes a checkpoint at the next such point and ends the process with the status `BUSY`.

    Two limits: where `log_every_n_steps` is 1, a resumed cell lacks the point that was logged last before the stop; and
    where an epoch has a single step, there is no such point before the end. (Our data modules' epochs do not end.)

    `progress.json` is for anybody who looks: every second at most, in the terms of `result.json`.
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
        """Training time of all sessions, validation included; what is done again after a kill counts once."""
        return self._earlier_seconds + (0.0 if self._begin is None else time.monotonic() - self._begin)

    def state_dict(self) -> dict[str, Any]:
        return {"curves": self._curves, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._curves, self._earlier_seconds = state_dict["curves"], state_dict["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module) -> None:
        # The dictionary is shared from here on: what the logger adds is in the next checkpoint.
        trainer.logger.curves = self._curves

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        self._begin = self._last_time = time.monotonic()
        self._begin_step = self._last_step = trainer.global_step
        self._tell(trainer)
        for number in STOP_SIGNALS:  # Lightning puts back what was there before the training
            signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, *signal_and_frame) -> None:
        self._asked_to_stop = True

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx) -> None:
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._tell(trainer)
        # Validation and the logging of a step come after this hook, and Lightning takes them as done when it resumes
        # from here: so not at the end of an epoch, nor where an interval ends. And not at every step, because the
        # ranks agree by a collective operation.
        step, interval = trainer.global_step, trainer.log_every_n_steps
        is_new, self._last_step = step != self._last_step, step  # the last of several batches to a step ends it
        is_time = step % CHECK_EVERY_STEPS == 1 or (self._asked_to_stop and trainer.world_size == 1)
        if not is_new or not is_time or trainer.is_last_batch:
            return
        batches = batch_idx + 1  # in which Lightning counts up to a validation: of the epoch, or of all
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
            unfinished.unlink(missing_ok=True)  # a full disk would stay full
            raise
        if trainer.is_global_zero:
            flush_events(trainer.logger, path.parent.parent)  # those before the checkpoint are not sent again
            replace_durably(unfinished, path)
            write_curves(path.parent.parent, self._curves)
        self._last_time = time.monotonic()
        self._cost = self._last_time - begin


def _end_where_gone(trainer: Trainer) -> None:
    """End this process if the cell's folder is gone: to write there would make another at the place of a moved run."""
    if trainer.is_global_zero and not Path(trainer.default_root_dir).exists():
        sys.exit(f"{trainer.default_root_dir}: is gone; was the run moved?")


def validations(curves: Curves) -> list[tuple[int, float]]:
    """Step and loss of every validation so far."""
    return next((sorted(curves[tag].items()) for tag in LOSSES if tag in curves), [])


def write_curves(folder: Path, curves: Curves) -> None:
    """Write `curves.csv`: a line for each point, with its tag, step and value."""
    points = [(tag, step, value) for tag, curve in curves.items() for step, value in sorted(curve.items())]
    table = pd.DataFrame(points, columns=["tag", "step", "value"])
    write_atomically(folder / "curves.csv", table.to_csv(index=False, na_rep="nan"))
