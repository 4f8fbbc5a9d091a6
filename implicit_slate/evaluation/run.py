"""One checkpoint, evaluated: what can be measured of it, the measuring, and the files that it leaves."""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data_modules.progress import meter
from implicit_slate.errors import UserError
from implicit_slate.evaluation.data import DataConfig, SplitOfData, load_split
from implicit_slate.evaluation.job import CEILING, TRUTH, Job, draw_slots, load_painter
from implicit_slate.evaluation.outputs import Panels, markdown, title
from implicit_slate.evaluation.records import Records
from implicit_slate.evaluation.reference import Reference
from implicit_slate.evaluation.settings import BY_DEFAULT, Settings
from implicit_slate.evaluation.summary import summarise, to_csv
from implicit_slate.evaluation.workers import Devices, device
from implicit_slate.files import write_atomically
from implicit_slate.metrics.inception import WeightsMissing, find_weights, read_weights
from implicit_slate.models import SlotModel
from implicit_slate.provenance import revision, versions

PANEL_ROWS = 6


def evaluate(checkpoint: Path, data: DataConfig, out: Path, settings: Settings, devices: Devices) -> dict[str, Any]:
    """Evaluate, or take what an earlier call of the same has left, and return the content of `<out>/<split>.json`.

    Beside it: `<split>.md` (a row of a table), `<split>.csv` (every image), `<split>.png` (panels) and
    `<split>_panels.npz` (what they are made of). A call that was stopped goes on where it was.

    Raises:
        UserError: what is asked for cannot be had; nothing is left behind then.
    """
    begin = time.monotonic()
    plan = _plan(checkpoint, data, settings)
    job, result_file = plan.job, out / f"{settings.split}.json"
    if (earlier := _read(result_file)) and earlier.get("fingerprint") == job.identity:
        return earlier
    with Records(out / f".{settings.split}.partial", job) as records:
        _measure(job, records, devices)
        panels, truth = _make_panels(plan.model, plan.split, settings.seed), plan.truth
        if TRUTH in job.passes:
            truth = np.array(records.features(TRUTH))
            plan.reference.save(truth)
        result = {
            "checkpoint": str(checkpoint), "step": plan.step, "data": data, "split": job.split, "images": job.images,
            "draws": job.draws, **summarise(job, records, truth, panels.truth[0].numel()), "notes": plan.notes,
            "git": revision(), "versions": versions(), "seconds": time.monotonic() - begin,
            "fingerprint": job.identity,
        }  # fmt: skip
        write_atomically(out / f"{job.split}.csv", to_csv(job, records))
        write_atomically(out / f"{job.split}.png", panels.to_png())
        write_atomically(out / f"{job.split}_panels.npz", panels.to_npz())
        write_atomically(out / f"{job.split}.md", markdown([result]))
        write_atomically(result_file, json.dumps(result, indent=1, allow_nan=False) + "\n")
        records.remove()
    return result


class _Plan(NamedTuple):
    """An evaluation that nothing stands in the way of."""

    job: Job
    model: SlotModel
    step: int | None
    split: SplitOfData
    reference: Reference | None
    truth: np.ndarray | None
    """The features that the reference keeps; None where they are still to be computed, or not needed."""
    notes: list[str]


def _plan(checkpoint: Path, data: DataConfig, settings: Settings) -> _Plan:
    model, step = load_painter(checkpoint)
    split = load_split(data, settings.split)
    first = split.images[[0]]
    if first["image"].shape[-1] != model.image_size:
        raise UserError(f"the model is of images of {model.image_size} pixels, {_place(split)} has "
                        f"{first['image'].shape[-1]}: --data.image_size {model.image_size}")  # fmt: skip
    count = min(settings.images or len(split.images), len(split.images))
    metrics, weights, notes = _choose(settings, split, count, model.predicts_tokens, "mask" in first)
    draws = 1 if model.slot_attention.slot_init == "queries" else settings.draws
    passes = list(range(draws))
    if set(metrics) != {"segmentation"} and model.ceiling(first["image"]) is not None:
        passes.insert(0, CEILING)
    reference = Reference(split.images, count) if weights else None
    truth = reference and reference.load()
    if reference and truth is None:
        passes.insert(0, TRUTH)
    job = Job(
        checkpoint=str(checkpoint),
        data=data,
        split=settings.split,
        images=count,
        draws=draws,
        metrics=metrics,
        batch_size=settings.batch_size,
        weights=weights and str(weights),
        seed=settings.seed,
        passes=tuple(passes),
    )
    return _Plan(job, model, step, split, reference, truth, notes)


def _measure(job: Job, records: Records, devices: Devices) -> None:
    """Do what is not done, with a progress bar."""
    missing = records.missing
    total, left = (sum(len(job.chunk(unit.chunk)) for unit in units) for units in (job.units, missing))
    with meter(f"{title(Path(job.checkpoint))}, {job.split}", total, total - left, "images") as advance:
        for unit, part in devices.measure(job, missing):
            records.put(unit, part)
            advance(len(job.chunk(unit.chunk)))


@torch.no_grad()
def _make_panels(model: SlotModel, split: SplitOfData, seed: int) -> Panels:
    """The first images of the split through the first draw of slots, as the passes see them."""
    model = model.to(device(0))
    rows = range(min(PANEL_ROWS, len(split.images)))
    image = split.images[list(rows)]["image"].to(next(model.parameters()))
    views = model.views(image, draw_slots(model, seed, 0, rows).to(image))
    return Panels(image, views.reconstruction, views.masks, model.ceiling(image))


def _choose(
    settings: Settings, split: SplitOfData, count: int, has_tokens: bool, has_masks: bool
) -> tuple[tuple[str, ...], Path | None, list[str]]:
    """The metrics that are measured, the weights of Inception if they are needed, and what is to be said about it.

    What is not there is left out, unless it was asked for: then it is a `UserError`.
    """
    asked, chosen = settings.metrics, list(settings.metrics or BY_DEFAULT)
    lacking = {
        "cross_entropy": None if has_tokens else "the model predicts no tokens",
        "segmentation": None if has_masks else f"{_place(split)} has no masks",
    }
    for name, reason in lacking.items():
        if name in chosen and reason:
            if asked:
                raise UserError(f"--metrics {name}: {reason}")
            chosen.remove(name)
    distances = [name for name in ("fid", "kid") if name in chosen]
    weights, notes = None, []
    if distances:
        try:
            weights = find_weights(settings.weights)
        except WeightsMissing as error:
            if asked or settings.weights:
                raise
            chosen = [name for name in chosen if name not in distances]
            notes.append(f"FID is left out: {error}")
        if weights and count < 2:
            raise UserError(f"FID needs at least 2 images, found {count} in {_place(split)}; --metrics leaves it out")
        if weights:
            _check_weights(weights)
    return tuple(chosen), weights, notes


@cache
def _check_weights(path: Path) -> None:
    """`UserError` for weights that are not those of FID, before anything is done; once for all cells of a grid."""
    read_weights(path)


def _place(split: SplitOfData) -> str:
    root = split.config["init_args"].get("root")
    return f"the {split.split} split of {split.config['class_path']}" + (f" ({root})" if root else "")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
