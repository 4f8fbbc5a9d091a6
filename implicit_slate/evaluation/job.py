"""An evaluation as a list of units of work, and what does one: any process can do any unit, in any order."""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from implicit_slate.errors import UserError
from implicit_slate.evaluation.data import DataConfig, load_split
from implicit_slate.evaluation.measures import as_columns, likeness, segmentation
from implicit_slate.metrics.inception import Inception, to_uint8
from implicit_slate.models import SlotModel
from implicit_slate.models.property_predictor import PropertyModel
from implicit_slate.training.trained import Trained, load_trained

TRUTH, CEILING = -2, -1
"""Passes over the images without slots; passes from 0 on are draws of the initial slots."""


@dataclass(frozen=True)
class Job:
    """What is evaluated, and on what; the same job gives the same numbers whichever processes do it."""

    checkpoint: str
    data: DataConfig
    split: str
    images: int
    """N, the first of the split."""
    draws: int
    metrics: tuple[str, ...]
    """Out of `METRICS`."""
    batch_size: int
    weights: str | None
    """Of the Inception network; None where its features are not needed."""
    seed: int
    passes: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with every setting and with the checkpoint's file."""
        stat = Path(self.checkpoint).stat()
        text = json.dumps(asdict(self) | {"file": [stat.st_size, stat.st_mtime_ns]}, sort_keys=True)
        return sha256(text.encode()).hexdigest()

    @property
    def identity(self) -> str:
        """As `fingerprint`, without what changes the way only and not the result."""
        return replace(self, batch_size=0, passes=()).fingerprint

    def chunk(self, number: int) -> range:
        """The images of one batch."""
        return range(number * self.batch_size, min((number + 1) * self.batch_size, self.images))

    @property
    def units(self) -> list["Unit"]:
        chunks = -(-self.images // self.batch_size)
        return [Unit(number, chunk) for number in self.passes for chunk in range(chunks)]


class Unit(NamedTuple):
    """One batch in one pass."""

    number: int
    """Of the pass."""
    chunk: int


class Part(NamedTuple):
    """What a unit yields."""

    values: np.ndarray
    """float64 (B, len(COLUMNS))"""
    features: np.ndarray | None
    """float32 (B, 2048)"""


class Worker:
    """A model, its data and the Inception network, on a device."""

    def __init__(self, job: Job, device: torch.device):
        self.job, self.device = job, device
        self.model = load_trained(job.checkpoint).model.to(device)
        self.images = load_split(job.data, job.split).images
        self.inception = Inception(Path(job.weights)).to(device) if job.weights else None

    @torch.no_grad()
    def do(self, unit: Unit) -> Part:
        chunk = self.job.chunk(unit.chunk)
        batch = {name: value.to(self.device) for name, value in self.images[list(chunk)].items()}
        image, values = batch["image"], {}
        if unit.number == TRUTH:
            pictures = image
        elif unit.number == CEILING:
            pictures = self.model.ceiling(image)
            values = likeness(pictures, image)
        else:
            slots_init = draw_slots(self.model, self.job.seed, unit.number, chunk).to(image)
            if self.needs_images:
                pictures, masks, cross_entropy = self.model.views(image, slots_init)
                values = likeness(pictures, image)
                if cross_entropy is not None:
                    values["cross_entropy"] = cross_entropy
            else:
                pictures, masks = None, self.model.segment(image, slots_init)
            if "segmentation" in self.job.metrics:
                values |= segmentation(masks, batch["mask"])
        features = None
        if self.inception is not None and pictures is not None:
            features = self.inception(to_uint8(pictures)).cpu().numpy()
        return Part(as_columns(values, len(chunk)).numpy(), features)

    @property
    def needs_images(self) -> bool:
        """Whether anything but the masks is asked for: images cost far more."""
        return set(self.job.metrics) != {"segmentation"}


def load_painter(path: str | Path) -> Trained:
    """As `load_trained`, of a model that makes images. `UserError` names a checkpoint of another."""
    trained = load_trained(path)
    if isinstance(trained.model, PropertyModel):
        kind = type(trained.model).__name__
        raise UserError(f"{path}: a {kind} makes no images; `implicit-slate validate` measures it")
    return trained


def draw_slots(model: SlotModel, seed: int, draw: int, images: range) -> Tensor:
    """Initial slots (B, K, S), of each image a function of the seed, the draw and the image's place in its split: the
    same whatever batches and processes the split is shared out to."""
    slots = []
    for image in images:
        state = np.random.SeedSequence((seed, draw, image)).generate_state(1, np.uint64)[0]
        slots.append(model.sample_slots(1, torch.Generator().manual_seed(int(state >> np.uint64(1)))))
    return torch.cat(slots).detach()
