"""Evaluate a checkpoint: choose what can be measured, measure it, and write the files."""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.progress import meter
from implicit_slate.errors import UserError
from implicit_slate.evaluation import BY_DEFAULT
from implicit_slate.evaluation.data import DataConfig, check_size, describe_split, load_images
from implicit_slate.evaluation.module import TRUTH, Evaluation, draw_slots, load_image_model
from implicit_slate.evaluation.outputs import markdown, summarise, title
from implicit_slate.files import check_writable, read_json, write_together
from implicit_slate.fixed_point.gradients import Truncated, Unrolled
from implicit_slate.metrics.inception import Inception, WeightsMissing, find_weights
from implicit_slate.pictures import panel_picture, panels_npz, to_png
from implicit_slate.provenance import revision, versions
from implicit_slate.training.checkpoints import load_untrained

PANEL_ROWS = 6


@dataclass
class Evaluator:
    """Evaluates checkpoints, one after the other, with the same trainer. For the settings see the options of
    `implicit-slate evaluate`."""

    trainer: Trainer
    split: str
    images: int | None
    draws: int
    metrics: tuple[str, ...] | None
    batch_size: int
    fid_weights: Path | None
    seed: int
    masks: str
    iterations: int | None
    _true_features: dict[str, Tensor] = field(default_factory=dict)
    """Features of the true images, by data; the cells of a grid usually share them."""

    def evaluate(self, checkpoint: Path, data: DataConfig, out: Path) -> dict[str, Any] | None:
        """Evaluate, or use the results of an earlier call with the same arguments; returns the content of
        `<out>/<split>.json`.

        Next to it this writes `<split>.md` (a row of a table), `<split>.csv` (every image), `<split>.png` (panels) and
        `<split>_panels.npz` (the arrays behind the panels). Only the first process writes; the others return None.

        Raises:
            UserError: a requested measure is impossible; nothing is written then.
        """
        begin = time.monotonic()
        model, step, _ = load_image_model(checkpoint)
        images, place = load_images(data, self.split), describe_split(data, self.split)
        first = images[list(range(min(PANEL_ROWS, len(images))))]
        check_size(model, checkpoint, images, data)
        if self.masks == "bilinear" and model.mask_side == model.image_size:
            raise UserError(f"--masks bilinear: the masks of a {type(model).__name__} have the images' resolution")
        count = min(self.images or len(images), len(images))
        impossible = {} if model.predicts_tokens else {"cross_entropy": "the model predicts no tokens"}
        impossible |= {} if "mask" in first else {"segmentation": f"{place} has no masks"}
        metrics, weights, notes = self._choose(impossible, count, place)
        draws = 1 if model.slot_attention.slot_init == "queries" else self.draws
        about = {"data": data, "split": self.split, "images": count, "draws": draws, "masks": self.masks,
                 "mask_side": model.mask_side}  # fmt: skip
        if self.iterations:  # not named `iterations`, because the report's frames also have the grid's axes
            about["applications"] = self.iterations
        named, file = {"checkpoint": str(checkpoint)}, checkpoint.stat()  # a moved run need not be evaluated again
        asked = [about, metrics, str(weights), self.seed, file.st_size, file.st_mtime_ns]
        fingerprint = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        earlier = read_json(out / f"{self.split}.json")
        if earlier and earlier.get("fingerprint") == fingerprint and all(file.exists() for file in self._files(out)):
            return earlier | named

        of_data = json.dumps([data, self.split, count])
        untrained = load_untrained(checkpoint, self.seed) if "segmentation" in metrics else None
        if self.iterations:
            for slots in (each.slot_attention for each in (model, untrained) if each):
                slots.solver = replace(slots.solver, max_iterations=self.iterations)
                if isinstance(slots.gradient, Truncated):  # k may be larger than the new number of iterations
                    slots.gradient = Unrolled()  # the same without a backward pass
        evaluation = Evaluation(
            model, images, metrics, draws, self.seed, weights and _inception(weights), self._true_features.get(of_data),
            untrained, self.masks == "bilinear",
        )  # fmt: skip
        check_writable(out)
        is_first, batches = self.trainer.is_global_zero, -(-count // (self.batch_size * self.trainer.world_size))
        with meter(title(checkpoint), batches, unit="batches") if is_first else nullcontext() as evaluation.advance:
            self.trainer.test(evaluation, DataLoader(range(count), self.batch_size), verbose=False)
        if weights:
            self._true_features[of_data] = evaluation.features[TRUTH]
        if not is_first:
            return None
        result = named | about | {
            "step": step, **summarise(evaluation), "notes": notes, "git": revision(),
            "versions": versions(), "seconds": time.monotonic() - begin, "fingerprint": fingerprint,
        }  # fmt: skip
        self._write(out, result, evaluation, first["image"])
        return result

    def _choose(
        self, impossible: dict[str, str], count: int, place: str
    ) -> tuple[tuple[str, ...], Path | None, list[str]]:
        """The metrics to measure, the Inception network's weights if they are needed, and notes for the user.

        Impossible metrics are left out, or raise a `UserError` if they were requested.
        """
        asked, weights = self.metrics or BY_DEFAULT, None
        if {"fid", "kid"} & set(asked):
            try:
                weights = find_weights(self.fid_weights)
            except WeightsMissing as error:
                if self.fid_weights:
                    raise
                impossible |= dict.fromkeys(("fid", "kid"), str(error))
            if count < 2:
                impossible |= dict.fromkeys(("fid", "kid"), f"it needs at least 2 images, found {count} in {place}")
        for name in self.metrics or ():
            if name in impossible:
                raise UserError(f"--metrics {name}: {impossible[name]}")
        notes = [f"FID is left out: {impossible['fid']}"] if "fid" in impossible else []
        return tuple(name for name in asked if name not in impossible), None if notes else weights, notes

    @torch.no_grad()
    def _write(self, out: Path, result: dict[str, Any], evaluation: Evaluation, image: Tensor) -> None:
        """Write all files. The panels show the images (B, C, H, W) with the first draw of slots, as measured."""
        model = evaluation.model.to(self.trainer.strategy.root_device)  # Lightning has moved it back to the CPU
        image = image.to(next(model.parameters()))
        views = model.views(image, draw_slots(model, self.seed, 0, range(len(image))).to(image))
        panels = image, views.reconstruction, evaluation.measured_masks(views.masks), model.ceiling(image)
        per_image = evaluation.measured.replace([torch.inf, -torch.inf], torch.nan).dropna(axis=1, how="all")
        contents = (
            per_image.to_csv(index=False),
            to_png(panel_picture(*panels)),
            panels_npz(*panels),
            markdown([result]),
            json.dumps(result, indent=1, allow_nan=False) + "\n",
        )
        write_together(dict(zip(self._files(out), contents, strict=True)))  # the JSON file describes the others

    def _files(self, out: Path) -> list[Path]:
        return [out / f"{self.split}{name}" for name in (".csv", ".png", "_panels.npz", ".md", ".json")]


@cache
def _inception(weights: Path) -> Inception:
    """The same network for all cells of a grid. Raises `UserError` if the file does not have the weights of FID."""
    return Inception(weights)
