"""`python -m benchmarks.slot_jacobian`: the cost of the callback `SlotJacobian` as a fraction of training time.

Lightning trains as in an experiment. With its default interval the callback would measure only once in minutes, so here
it measures more often, and the cost is scaled to the default: seconds of a measurement / (interval in steps × seconds
of a step).
"""

import inspect
import logging
import time
import warnings
from pathlib import Path
from statistics import median

import lightning as L
import yaml

from benchmarks.common import make_console, make_table, synchronize
from callbacks import SlotJacobian
from data_modules import MirrorScenes
from implicit_slate.training import Optimization, SLATEModule

CADENCE = inspect.signature(SlotJacobian).parameters["every_n_steps"].default
STRESS = Path(__file__).parents[1] / "experiments" / "stress.yaml"


def stress_setting() -> tuple[dict, int]:
    """From `experiments/stress.yaml`: the settings of `SLATEModule`, and the steps between two measurements."""
    experiment = yaml.safe_load(STRESS.read_text())
    callbacks = {entry["class_path"]: entry.get("init_args", {}) for entry in experiment["trainer"]["callbacks"]}
    settings = experiment["model"]["init_args"]
    settings["optimization"] = Optimization(**settings["optimization"])
    return settings, callbacks["callbacks.SlotJacobian"].get("every_n_steps", CADENCE)


class TimedSlotJacobian(SlotJacobian):
    """`SlotJacobian` that records the seconds of every training step and of every measurement between two steps."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.step_seconds: list[float] = []
        self.measure_seconds: list[float] = []

    def on_train_batch_start(self, *_) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer, *arguments) -> None:
        synchronize()
        begin = time.perf_counter()
        self.step_seconds.append(begin - self._start)
        super().on_train_batch_end(trainer, *arguments)
        synchronize()
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != trainer.max_steps:
            self.measure_seconds.append(time.perf_counter() - begin)


def measure(settings: dict, freeze_dvae: bool, steps: int, every_n_steps: int, batch_size: int = 16) -> list[float]:
    """Median seconds of a training step and of a measurement. If frozen, the dVAE is untrained."""
    L.seed_everything(0, verbose=False)
    module = SLATEModule(**settings)
    if freeze_dvae:
        module.dvae_is_frozen = True
        module.model.dvae.requires_grad_(False)
    jacobian = TimedSlotJacobian(every_n_steps=every_n_steps)
    trainer = L.Trainer(
        max_steps=steps, callbacks=[jacobian], devices=1, logger=False, use_distributed_sampler=False,
        limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=MirrorScenes(module.model.image_size, batch_size))
    return [median(jacobian.step_seconds[1:]), median(jacobian.measure_seconds)]


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    title = f"The cost of SlotJacobian every {CADENCE} steps, and as often as the experiment has it"
    numbers = ["step ms", "measure ms", "% of it", "own every", "% of it"]
    table = make_table(title, ["experiment", "gradient"], numbers)
    stress, cadence = stress_setting()
    public: dict = {}  # the public defaults for 3D Shapes: 64×64, V=1024, D=192, n=3
    for name, settings, freeze, steps, every, own in (
        ("stress, 32×32", stress, True, 200, 50, cadence),
        ("64×64, V=1024", public, False, 12, 3, CADENCE),
    ):
        for gradient in ("unrolled", "implicit"):
            step, measurement = measure(settings | {"gradient": gradient}, freeze, steps, every)
            times, cost = [f"{1e3 * step:.1f}", f"{1e3 * measurement:.1f}"], 100 * measurement / step
            table.add_row(name, gradient, *times, f"{cost / CADENCE:.2f}", str(own), f"{cost / own:.2f}")
    make_console().print(table)


if __name__ == "__main__":
    main()
