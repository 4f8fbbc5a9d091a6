"""`implicit-slate ablate GRID --dry-run`: how this machine would run a grid, and a probe's estimate of the time.

The probe trains the first cell of each kind (see `kind_of`) for some steps in a temporary folder. It runs as many
copies at a time as cells would run, so that the measured time includes their competition for the machine.
"""

import heapq
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from implicit_slate.ablation.cell import max_steps, prepare
from implicit_slate.ablation.launchers import Work
from implicit_slate.ablation.pool import LocalPool, Resources
from implicit_slate.errors import UserError
from implicit_slate.files import read_json, write_atomically
from implicit_slate.run_folder import read_result
from implicit_slate.yaml_files import leaves, override, with_callback

WARM_UP, STEPS = 10, 30
CLOCK = "clock.json"


class Clock(Callback):
    """Writes `clock.json` to the trainer's `default_root_dir`: seconds for the start, a step and a validation."""

    def __init__(self):
        self._seconds = {"start": -time.monotonic(), "step": 0.0, "validation": 0.0}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == WARM_UP and self._seconds["start"] < 0:
            self._seconds["start"] += _now()
            self._seconds["step"] = -_now() / STEPS
        elif trainer.global_step == WARM_UP + STEPS and self._seconds["step"] < 0:
            self._seconds["step"] += _now() / STEPS
            self._seconds["batches"] = trainer.num_training_batches

    def on_validation_start(self, trainer, pl_module) -> None:
        self._seconds["validation"] = -_now()

    def on_validation_end(self, trainer, pl_module) -> None:
        self._seconds["validation"] += _now()

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            write_atomically(Path(trainer.default_root_dir) / CLOCK, json.dumps(self._seconds))


def print_plan(work: Work, resources: Resources) -> None:
    """Print the number of cells, how many run at a time on which devices, and the estimated hours.

    Raises:
        UserError: a probe failed.
    """
    contents = {name: work.contents[folder] for name, folder in work.cells.items()}
    print(f"{len(work.folder.cells)} cells, {len(contents)} of them to run: {resources}", flush=True)
    kinds = {name: kind_of(content["config"]) for name, content in contents.items()}
    total, hours = 0.0, {}
    with tempfile.TemporaryDirectory(prefix="implicit-slate-probe-") as place:
        if work.pretrain:
            total = _measure(Path(place), "pretrain", work.contents[work.pretrain], resources, 1)
            print(f"pretraining: {total:.3g} hours", flush=True)
        elif work.folder.pretrain.exists():
            (Path(place) / "pretrain").symlink_to(work.folder.pretrain.resolve())
        for kind, count in Counter(kinds.values()).items():
            first = next(name for name in kinds if kinds[name] == kind)
            hours[kind] = _measure(Path(place), first, contents[first], resources, min(resources.workers, len(kinds)))
            print(f"{count} cells as {first}: {hours[kind]:.3g} hours each", flush=True)
    ends = [0.0] * resources.workers  # the next cell goes to the worker that is free first
    for kind in kinds.values():
        heapq.heapreplace(ends, ends[0] + hours[kind])
    print(
        f"together about {total + max(ends):.3g} hours, from the first step of each; by {STEPS} steps and a validation,"
    )
    print("without what callbacks measure more rarely than that")


def _measure(place: Path, name: str, content: dict[str, Any], resources: Resources, copies: int) -> float:
    """The estimated hours of a cell while `copies` of it run at a time."""
    trainer = content["config"].get("trainer") or {}
    each = trainer.get("accumulate_grad_batches") or 1
    config = override(
        with_callback(content["config"], f"{__name__}.Clock"),
        {
            "trainer.max_steps": WARM_UP + STEPS,
            "trainer.max_epochs": -1,
            "trainer.val_check_interval": (WARM_UP + STEPS) * each,
            "trainer.check_val_every_n_epoch": None,
            "trainer.num_sanity_val_steps": 0,
        },
    )
    folders = {f"{name} {copy}": place / "cells" / f"{name} {copy}" for copy in range(copies)}
    if name == "pretrain":
        folders = {name: place / name}
    for folder in folders.values():
        prepare(folder, content | {"config": config})
    LocalPool(lambda *event: None).run(folders, resources)
    for folder in folders.values():
        result = read_result(folder)
        if result["status"] != "complete":
            raise UserError(
                f"the probe of {name}: {result['status']} at step {result['step']} {result.get('error', '')}"
            )
    clocks = [read_json(folder / CLOCK) for folder in folders.values()]
    mean = {key: sum(clock[key] for clock in clocks) / copies for key in clocks[0]}
    steps = max_steps(content["config"])
    if steps < 0:
        steps = int(trainer.get("max_epochs") or 1000) * mean["batches"] / each  # Lightning's default
    validations = steps * each / validation_interval(trainer, mean["batches"])
    return (mean["start"] + steps * mean["step"] + validations * mean["validation"]) / 3600


def validation_interval(trainer: Mapping[str, Any], batches: float) -> float:
    """The number of batches between validations, as Lightning computes it."""
    interval = trainer.get("val_check_interval") or 1.0
    epochs = trainer.get("check_val_every_n_epoch", 1) or 1
    return interval * batches * epochs if isinstance(interval, float) else interval


def kind_of(config: Mapping[str, Any]) -> str:
    """A key that is the same for cells that take equally long, which differ only in seed, rates, clip and warmup."""
    cheap = ("seed_everything", "model.optimization.")
    return json.dumps([leaf for leaf in leaves(config) if not leaf[0].startswith(cheap)], default=str)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.monotonic()
