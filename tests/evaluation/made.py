"""Small runs to evaluate: a data set of coloured squares, and checkpoints as training writes them.

Run as a program, this is `implicit-slate` with `ColourFeatures` as the Inception network, also in its child processes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from implicit_slate.training import PropertyModule, SLATEModule, SpatialBroadcastModule
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES

KINDS = {
    "SLATEModule": (SLATEModule, SLATE_SIZES),
    "SpatialBroadcastModule": (SpatialBroadcastModule, BROADCAST_SIZES),
    "PropertyModule": (PropertyModule, BROADCAST_SIZES),
}
NUM_TEST = 9
"""Size of the test split."""


def images(root: Path, masks: bool = True, count: int = 60) -> Path:
    """Writes 16×16 images of two coloured squares on noise, in the layout of CLEVR-Mirror."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image, mask = rng.integers(0, 60, (16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
        for label in (1, 2):
            y, x = rng.integers(0, 10, 2)
            image[y : y + 6, x : x + 6], mask[y : y + 6, x : x + 6] = rng.integers(90, 255, 3), label
        for kind, pixels in (("images", image), ("masks", mask))[: 1 + masks]:
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"CLEVR_new_{i:010d}.png")
    return root


def run(folder: Path, root: Path, kind: str = "SLATEModule", seed: int = 0, **sizes) -> Path:
    """Writes a run's folder with a checkpoint and the `config.yaml` that names its data. Returns the checkpoint."""
    torch.manual_seed(seed)
    module, defaults = KINDS[kind]
    sizes = defaults | sizes
    options = {"root": str(root), "image_size": 16, "batch_size": 4}
    data = {"class_path": "data_modules.CLEVRMirror", "init_args": options}
    checkpoint = {
        "state_dict": module(**sizes).state_dict(),
        "hyper_parameters": {"_class_path": f"implicit_slate.training.{kind}", **sizes},
        "global_step": 7,
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder / "checkpoints" / "last.ckpt"


class ColourFeatures(torch.nn.Module):
    """Features: the mean colours of an image's four quarters, followed by zeros."""

    images = 0

    def __init__(self, weights):
        super().__init__()

    def forward(self, images):
        assert images.dtype == torch.uint8
        ColourFeatures.images += len(images)
        quarters = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 255
        return torch.nn.functional.pad(quarters, (0, 2048 - 12))


if __name__ == "__main__":
    from implicit_slate.cli import main
    from implicit_slate.evaluation import run as module_of_evaluator

    module_of_evaluator.Inception = ColourFeatures
    sys.exit(main())
