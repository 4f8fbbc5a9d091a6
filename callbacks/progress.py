"""Says how far a run is, in a small file that others may read at any time."""

import json
import math
import time
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from callbacks.probe import Probe
from implicit_slate.files import write_atomically
from implicit_slate.measures import LOGGED, LOSSES

EVERY_SECONDS = 1.0
SHOWN = ("train/loss", *LOSSES, *(tag for tag, measure in LOGGED.items() if measure.headline))


class Progress(Callback):
    """Writes `progress.json` in the trainer's `default_root_dir`, every second at most.

    It holds step, max_steps, steps_per_second, seconds, and the latest of some metrics (null where there is none).
    `seconds` counts the training time of all sessions of a run: it is kept in checkpoints, so what a killed session
    did after its last checkpoint, and the next session does again, counts once.
    """

    def __init__(self):
        self._earlier = 0.0
        self._begin = self._written = None
        self._begin_step = 0

    @property
    def seconds(self) -> float:
        """Training time so far, validation included."""
        return self._earlier + (time.monotonic() - self._begin if self._begin is not None else 0.0)

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._earlier = state_dict["seconds"]

    def on_train_start(self, trainer, pl_module) -> None:
        self._begin, self._begin_step = time.monotonic(), trainer.global_step
        self._write(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if time.monotonic() - self._written >= EVERY_SECONDS:
            self._write(trainer)

    def on_train_end(self, trainer, pl_module) -> None:
        self._earlier, self._begin = self.seconds, None

    def _write(self, trainer: Trainer) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        progress = {
            "step": trainer.global_step,
            "max_steps": trainer.max_steps,
            "steps_per_second": (trainer.global_step - self._begin_step) / max(self._written - self._begin, 1e-9),
            "seconds": self.seconds,
        }
        latest = dict(trainer.callback_metrics)
        for callback in trainer.callbacks:
            if isinstance(callback, Probe):
                latest |= callback.latest
        for name in SHOWN:
            value = float(latest.get(name, math.nan))
            progress[name] = value if math.isfinite(value) else None
        write_atomically(Path(trainer.default_root_dir) / "progress.json", json.dumps(progress), durable=False)
