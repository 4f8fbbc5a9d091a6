"""Reconstruct image files through the slots of a model, and draw the slots' masks."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_modules.base import ArrayImages
from data_modules.image_files import PHOTOGRAPH, Item, read_item
from data_modules.image_folder import SUFFIXES
from data_modules.progress import meter
from implicit_slate.errors import UserError
from implicit_slate.evaluation.module import draw_slots, load_image_model
from implicit_slate.files import write_atomically
from implicit_slate.metrics.inception import to_uint8
from implicit_slate.models import SlotModel
from implicit_slate.models.generation import check_sampling
from implicit_slate.pictures import panel_columns, tile, to_png

PANEL_ROWS = 16
OUTPUTS = ("reconstructions", "masks", "panels.png")
"""The outputs of a call, which writes either all of them or none."""


def generate(arguments: argparse.Namespace) -> int:
    """Run the command with its parsed arguments; returns the exit status."""
    out, files = arguments.out, _image_files(arguments.images)
    for name in OUTPUTS:
        if (out / name).exists():
            raise UserError(f"{out / name}: exists already; it is not overwritten")
    model = load_image_model(arguments.checkpoint).model.to("cuda" if torch.cuda.is_available() else "cpu")
    sampling = _sampling(arguments, model)
    images = ArrayImages(np.stack([read_item(Item(file), model.image_size, PHOTOGRAPH).image for file in files]))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out, prefix=".") as folder:
            _generate(model, images, [file.stem for file in files], Path(folder), arguments, sampling)
            for name in OUTPUTS:
                (Path(folder) / name).rename(out / name)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    print(f"{out}: reconstructions/ ({len(files)}), masks/ ({model.slot_attention.num_slots} slots), panels.png")
    return 0


def _generate(
    model: SlotModel, images: ArrayImages, names: list[str], folder: Path, arguments: argparse.Namespace, sampling: dict
) -> None:
    """Write `OUTPUTS` to `folder`."""
    rows: list[Tensor] = []
    with meter("generate", len(names), unit="images") as advance:
        for places in map(Tensor.tolist, torch.arange(len(names)).split(arguments.batch_size)):
            image = images[places]["image"].to(next(model.parameters()))
            slots_init = draw_slots(model, arguments.seed, 0, places).to(image)
            views = model.views(image, slots_init, **sampling)
            for place, reconstruction, masks in zip(places, views.reconstruction, views.masks):
                _write(folder / "reconstructions" / f"{names[place]}.png", reconstruction)
                for k, mask in enumerate(masks, 1):
                    _write(folder / "masks" / f"{names[place]}_slot{k:02d}.png", mask[None])
            columns = panel_columns(image, views.reconstruction, views.masks, model.ceiling(image))
            rows += torch.stack(list(columns.values()), 1)[: max(0, PANEL_ROWS - len(rows))]
            advance(len(places))
    write_atomically(folder / "panels.png", to_png(tile(torch.stack(rows), list(columns))))


def _image_files(given: Sequence[Path]) -> list[Path]:
    """The given files and those in given folders, which are sorted by name. Raises `UserError` for a folder without
    images, or two files with the same stem."""
    files = []
    for path in given:
        pictures = (file for file in path.glob("[!.]*") if file.suffix.lower() in SUFFIXES)
        inside = sorted(pictures) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: expected images ({', '.join(SUFFIXES)}), found none")
        files += inside
    stems: dict[str, Path] = {}
    for file in files:
        if (other := stems.setdefault(file.stem, file)) is not file:
            raise UserError(f"{file}: has the same name as {other}, so one reconstruction would overwrite the other")
    return files


def _sampling(arguments: argparse.Namespace, model: SlotModel) -> dict:
    """The arguments for `SLATE.generate`; none for greedy generation. Raises `UserError` for a model without tokens."""
    sampling = {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}
    if sampling == {"temperature": 0.0, "top_k": None, "top_p": None}:
        return {}
    if not model.predicts_tokens:
        raise UserError(f"--temperature, --top-k, --top-p: a {type(model).__name__} makes no tokens to sample")
    check_sampling(model.vocab_size, **sampling)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(arguments.seed)
    return sampling | {"generator": generator}


def _write(path: Path, image: Tensor) -> None:
    """Write an image (C, H, W) in [0, 1] as a PNG file, in greyscale if C is 1."""
    pixels = to_uint8(image).permute(1, 2, 0).squeeze(-1).cpu().numpy()
    write_atomically(path, to_png(Image.fromarray(pixels)))
