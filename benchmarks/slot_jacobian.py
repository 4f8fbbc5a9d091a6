"""`python -m benchmarks.slot_jacobian`: what the callback `SlotJacobian` costs, as a part of training time.

Lightning trains as in an experiment. At its default cadence the callback would measure once in minutes, so it is made
to measure more often here, and the cost is scaled to the default: seconds a measurement / (cadence × seconds a step).
"""

import inspect
import logging
import time
import warnings
from pathlib import Path
from statistics import median
from typing import NamedTuple

import lightning as L
import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from callbacks import SlotJacobian
from implicit_slate.training import Optimization, SLATEModule

CADENCE = inspect.signature(SlotJacobian).parameters["every_n_steps"].default
DEMONSTRATION = Path(__file__).parents[1] / "experiments" / "demo.yaml"


class Experiment(NamedTuple):
    """What is trained, and how often it is measured here."""

    settings: dict
    """Of `SLATEModule`."""
    dvae_is_frozen: bool
    steps: int
    every_n_steps: int
    """Between two measurements here."""
    own_cadence: int = CADENCE
    """Steps between two measurements in the experiment."""


def demonstration(gradient: str) -> Experiment:
    """That of `experiments/demo.yaml`, its frozen dVAE untrained."""
    experiment = yaml.safe_load(DEMONSTRATION.read_text())
    callbacks = {entry["class_path"]: entry.get("init_args", {}) for entry in experiment["trainer"]["callbacks"]}
    cadence = callbacks["callbacks.SlotJacobian"].get("every_n_steps", CADENCE)
    settings = experiment["model"]["init_args"]
    settings |= {"optimization": Optimization(**settings["optimization"]), "gradient": gradient}
    return Experiment(settings, dvae_is_frozen=True, steps=200, every_n_steps=50, own_cadence=cadence)


def full_size(gradient: str) -> Experiment:
    """The public defaults for 3D Shapes: 64×64, V=1024, D=192, n=3."""
    return Experiment(dict(gradient=gradient), dvae_is_frozen=False, steps=12, every_n_steps=3)


class Squares(L.LightningDataModule):
    """Images of coloured squares on grey."""

    def __init__(self, image_size: int, num_images: int, batch_size: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = torch.full((num_images, 3, image_size, image_size), 0.5)
        for image in self.images:
            for _ in range(4):
                x, y = torch.randint(image_size * 3 // 4, (2,), generator=generator).tolist()
                image[:, y : y + image_size // 4, x : x + image_size // 4] = torch.rand(3, 1, 1, generator=generator)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader([{"image": image} for image in self.images], batch_size=self.batch_size)

    def probe(self, num_images: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[:num_images]}


class Stopwatch(L.Callback):
    """Seconds of every training step, what other callbacks do after it not included."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_) -> None:
        _synchronize()
        self.seconds.append(time.perf_counter() - self._start)


class TimedSlotJacobian(SlotJacobian):
    """`SlotJacobian` that keeps the seconds of every measurement during training."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seconds: list[float] = []

    def on_train_batch_end(self, trainer, *arguments) -> None:
        start = time.perf_counter()
        super().on_train_batch_end(trainer, *arguments)
        _synchronize()
        if trainer.global_step % self.every_n_steps == 0:
            self.seconds.append(time.perf_counter() - start)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(experiment: Experiment, batch_size: int = 16) -> tuple[float, float]:
    """Median seconds of a training step, and of a measurement."""
    L.seed_everything(0, verbose=False)
    module = SLATEModule(**experiment.settings)
    if experiment.dvae_is_frozen:
        module.dvae_is_frozen = True
        module.model.dvae.requires_grad_(False)
    stopwatch, jacobian = Stopwatch(), TimedSlotJacobian(every_n_steps=experiment.every_n_steps)
    trainer = L.Trainer(
        max_steps=experiment.steps, callbacks=[stopwatch, jacobian], devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Squares(module.model.image_size, num_images=8 * batch_size, batch_size=batch_size))
    return median(stopwatch.seconds[1:]), median(jacobian.seconds)


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    title = f"What SlotJacobian costs every {CADENCE} steps, and as often as the experiment has it"
    table = Table("experiment", "gradient", title=title, title_justify="left")
    for column in ("step ms", "measure ms", "% of it", "own every", "% of it"):
        table.add_column(column, justify="right")
    for name, make in {"demo, 32×32": demonstration, "64×64, V=1024": full_size}.items():
        for gradient in ("unrolled", "implicit"):
            experiment = make(gradient)
            step, measurement = measure(experiment)
            cost = 100 * measurement / step
            table.add_row(
                name, gradient, f"{1e3 * step:.1f}", f"{1e3 * measurement:.1f}", f"{cost / CADENCE:.2f}",
                str(experiment.own_cadence), f"{cost / experiment.own_cadence:.2f}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
