"""`python -m benchmarks.loading`: images a second from the cache, beside decoding them each time, in one run.

The images are the embedded scenes, enlarged to CLEVR-Mirror's 128×128 and written as PNG files, loaded at 64×64 in
batches of 50 as a training run loads them: in its own process, or in processes that load for it. The files are in the
system's memory, not read from a disk. Who is timed first alternates, and the median of some rounds counts.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from data_modules import CLEVRMirror, MirrorScenes
from data_modules.base import ArrayImages, Batch, Images
from data_modules.image_files import Item
from data_modules.sampling import StepBatchSampler
from data_modules.sources import FileSource

STORED, SIZE, BATCH = 128, 64, 50


class DecodedEachTime:
    """Images and masks that are decoded whenever they are asked for."""

    def __init__(self, items: Sequence[Item], size: int):
        self.items, self.source = items, FileSource(items, size, CLEVRMirror.crop)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, indices: list[int]) -> Batch:
        images, masks, *_ = self.source.decode([self.items[index] for index in indices])
        return ArrayImages(images, masks)[list(range(len(images)))]


class Measured(NamedTuple):
    """Images a second."""

    decoding: float
    cached: float


def write_images(folder: Path, count: int) -> None:
    """`count` scenes with masks, in CLEVR-Mirror's layout."""
    scenes = MirrorScenes(STORED // 2)
    scenes.setup()
    batch = scenes.splits.train[[index % len(scenes.splits.train) for index in range(count)]]
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index, (image, mask) in enumerate(zip(batch["image"], batch["mask"])):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        name = f"CLEVR_new_{index:010d}.png"
        Image.fromarray(pixels).resize((STORED, STORED), Image.BICUBIC).save(folder / "images" / name)
        labels = Image.fromarray(mask.numpy().astype(np.uint8)).resize((STORED, STORED), Image.NEAREST)
        labels.save(folder / "masks" / name)


def images_per_second(images: Images, num_workers: int, batches: int) -> float:
    """Through a loader of `num_workers` processes; its start, and its first batch, are not counted."""
    sampler = StepBatchSampler(len(images), BATCH)
    loader = iter(DataLoader(images, batch_size=None, sampler=sampler, num_workers=num_workers))
    next(loader)
    start = time.perf_counter()
    loaded = sum(len(batch["image"]) for batch in islice(loader, batches))
    return loaded / (time.perf_counter() - start)


def measure(decoding: Images, cached: Images, num_workers: int, seconds: float = 2.0, rounds: int = 5) -> Measured:
    """Each for about `seconds` a round."""
    speeds: dict[str, list[float]] = {"decoding": [], "cached": []}
    both = {"decoding": decoding, "cached": cached}
    batches = {
        name: max(2, round(seconds * images_per_second(images, num_workers, batches=2) / BATCH))
        for name, images in both.items()
    }
    for number in range(rounds):
        for name in list(both)[:: 1 if number % 2 else -1]:
            speeds[name].append(images_per_second(both[name], num_workers, batches[name]))
    return Measured(median(speeds["decoding"]), median(speeds["cached"]))


def main(count: int = 2000) -> None:
    torch.set_num_threads(1)  # a processor for each process
    console = Console()
    table = Table("loading processes", title=f"Images a second, {STORED}×{STORED} PNG with masks to {SIZE}×{SIZE}")
    for column in ("decoded each time", "from the cache", "ratio"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, count)
        module = CLEVRMirror(folder, SIZE, BATCH)
        start = time.perf_counter()
        module.setup()
        console.print(f"making the cache: {count / (time.perf_counter() - start):.0f} images a second")
        decoding = DecodedEachTime(module.list_items()["train"], SIZE)
        for num_workers in (0, 2):
            result = measure(decoding, module.splits.train, num_workers)
            table.add_row(
                str(num_workers or "0 (the training process)"),
                f"{result.decoding:,.0f}",
                f"{result.cached:,.0f}",
                f"{result.cached / result.decoding:.0f}",
            )
    console.print(table)
    console.print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
