"""`python -m benchmarks.loading`: images per second from the cache, compared with decoding them each time.

The images are the embedded scenes, enlarged to CLEVR-Mirror's 128×128 and written as PNG files. They are loaded at
64×64 in batches of 50 as in a training run: in the training process or in loading processes. The files are in the
system's page cache, not read from a disk. The two methods are timed alternately; medians are shown.
"""

import io
import os
import tempfile
import time
import zipfile
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.common import in_turn, make_console, make_table
from data_modules import CLEVRMirror
from data_modules.base import ArrayImages, Batch, Images
from data_modules.mirror_scenes import EMBEDDED
from data_modules.sampling import StepBatchSampler
from data_modules.sources import FileSource

STORED, SIZE, BATCH = 128, 64, 50


class DecodedEachTime:
    """Images and masks that are decoded at every access."""

    def __init__(self, source: FileSource):
        self.source = source

    def __len__(self) -> int:
        return len(self.source.items)

    def __getitem__(self, indices: list[int]) -> Batch:
        decoded = [self.source.decode(self.source.items[index]) for index in indices]
        images, masks = (np.concatenate([piece[part] for piece in decoded]) for part in range(2))
        return ArrayImages(images, masks)[list(range(len(images)))]


def write_images(folder: Path, count: int) -> None:
    """Writes `count` scenes with masks in CLEVR-Mirror's layout."""
    with zipfile.ZipFile(EMBEDDED) as archive:
        for kind, resampling in (("images", Image.Resampling.BICUBIC), ("masks", Image.Resampling.NEAREST)):
            (folder / kind).mkdir()
            names = sorted(name for name in archive.namelist() if name.startswith(f"{kind}/"))
            for index, name in zip(range(count), cycle(names)):
                picture = Image.open(io.BytesIO(archive.read(name))).resize((STORED, STORED), resampling)
                picture.save(folder / kind / f"CLEVR_new_{index:010d}.png")


def images_per_second(images: Images, num_workers: int, batches: int) -> float:
    """The speed of a loader with `num_workers` processes, without its start and first batch."""
    sampler = StepBatchSampler(len(images), BATCH)
    loader = iter(DataLoader(images, batch_size=None, sampler=sampler, num_workers=num_workers))
    next(loader)
    start = time.perf_counter()
    loaded = sum(len(batch["image"]) for batch in islice(loader, batches))
    return loaded / (time.perf_counter() - start)


def measure(both: dict[str, Images], num_workers: int, seconds: float = 2.0, rounds: int = 5) -> dict[str, float]:
    """Median images per second of both methods, each timed for about `seconds` in every round."""
    runs = {}
    for name, images in both.items():
        batches = max(2, round(seconds * images_per_second(images, num_workers, batches=2) / BATCH))
        runs[name] = partial(images_per_second, images, num_workers, batches)
    return {name: median(speeds) for name, speeds in in_turn(runs, rounds).items()}


def main(count: int = 2000) -> None:
    torch.set_num_threads(1)  # one core per process
    console = make_console()
    title = f"Images per second, {STORED}×{STORED} PNG with masks to {SIZE}×{SIZE}"
    table = make_table(title, ["loading processes"], ["decoded each time", "from the cache", "ratio"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, count)
        module = CLEVRMirror(folder, SIZE, BATCH)
        start = time.perf_counter()
        module.setup()
        console.print(f"making the cache: {count / (time.perf_counter() - start):.0f} images per second")
        both = {"decoding": DecodedEachTime(module.sources()["train"]), "cached": module.splits.train}
        for num_workers in (0, 2):
            decoding, cached = measure(both, num_workers).values()
            processes = str(num_workers or "0 (the training process)")
            table.add_row(processes, f"{decoding:,.0f}", f"{cached:,.0f}", f"{cached / decoding:.0f}")
    console.print(table)
    console.print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
