"""The outputs of several models for the same images: pictures, label maps, and measures of each image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data_modules.base import Batch, Images
from data_modules.progress import meter
from implicit_slate.evaluation.data import check_size
from implicit_slate.evaluation.module import draw_slots, load_image_model
from implicit_slate.evaluation.outputs import title
from implicit_slate.files import write_atomically
from implicit_slate.fixed_point import spectral_norm
from implicit_slate.measures import finite
from implicit_slate.metrics.likeness import likeness
from implicit_slate.metrics.segmentation import agreement, segments
from implicit_slate.models import SlotModel
from implicit_slate.pictures import colored_segments, enlarged, tile, to_array, to_png

TRUTH, OVERVIEW = "image", "overview"
"""Keys besides the models' names: the images themselves, and pictures of an image with all models' outputs."""
AT_A_TIME = 20
"""How many images go through a model at a time."""
SIDE = 256
"""Small pictures are enlarged by an integer factor to at least this side, so that the app shows sharp pixels."""


class Look(NamedTuple):
    """An image, or a model's output for it."""

    file: Path
    """The picture, a PNG file."""
    labels: np.ndarray | None
    """uint8 (H, W): i for the pixels of the i-th object, or where the i-th slot has the largest share; 0 for none. None
    if the objects are not known."""
    measures: dict[str, float | None]
    """Empty for the image itself; values that are not defined, such as FG-ARI without objects, are None."""


def load_models(paths: Sequence[Path], images: Images, data: dict[str, Any]) -> dict[str, SlotModel]:
    """The models by name, on the GPU if there is one. Names are the gradient modes if all differ, else from `title`.

    Raises:
        UserError: a file has no model that makes images, or the model has another image size.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = []
    for path in paths:
        model = load_image_model(path).model
        check_size(model, path, images, data)
        models.append(model.requires_grad_(False).to(device))
    names = [str(model.slot_attention.gradient) for model in models]
    if len(set(names)) < len(names):
        names = [f"{i} {title(path)}" for i, path in enumerate(paths, 1)]
    return {name.replace(".", "_"): model for name, model in zip(names, models)}  # MongoDB forbids dots in keys


def look(models: dict[str, SlotModel], images: Images, count: int, out: Path, split: str) -> dict[str, list[Look]]:
    """The first `count` images and each model's outputs, by the models' names, `TRUTH` and `OVERVIEW`.

    Initial slots are those of the first draw of `evaluate`, so measures are the same as there. The pictures are written
    to `out/<name>/<split>_<number>.png`.
    """
    looks: dict[str, list[Look]] = {name: [] for name in (OVERVIEW, TRUTH, *models)}
    with meter("view", count * len(models), unit="images") as advance:
        for places in map(Tensor.tolist, torch.arange(count).split(AT_A_TIME)):
            batch = images[places]
            found = {TRUTH: _truth(batch)}
            for name, model in models.items():
                found[name] = _through(model, batch, places)
                advance(len(places))
            pictures = torch.stack([of.pictures.cpu() for of in found.values()], 1)  # (B, columns, 3, H, W)
            masks = np.stack([colored_segments(batch["image"], of.masks) for of in found.values()], 1)
            panels = np.stack([to_array(pictures), masks], 1)
            for i, place in enumerate(places):
                file = f"{split}_{place:06d}.png"
                write_atomically(out / OVERVIEW / file, to_png(tile(panels[i], list(found))), durable=False)
                looks[OVERVIEW].append(Look(out / OVERVIEW / file, None, {}))
                for name, of in found.items():
                    pixels = enlarged(of.pictures[i], -(-SIDE // of.pictures.shape[-1]))
                    write_atomically(out / name / file, to_png(Image.fromarray(pixels)), durable=False)
                    labels = None if of.labels is None else of.labels[i].byte().cpu().numpy()
                    measures = {key: finite(float(values[i])) for key, values in of.measures.items()}
                    looks[name].append(Look(out / name / file, labels, measures))
    return looks


class _Found(NamedTuple):
    """Results for a batch of images: pictures (B, 3, H, W), label maps (B, H, W), masks (B, K, H, W), measures (B,)."""

    pictures: Tensor
    labels: Tensor | None
    masks: Tensor
    measures: dict[str, Tensor]


def _truth(batch: Batch) -> _Found:
    """The images themselves, with masks of the background and all objects."""
    image, mask = batch["image"], batch.get("mask")
    masks = torch.ones_like(image[:, :1]) if mask is None else F.one_hot(mask).movedim(-1, 1).float()
    return _Found(image, mask, masks, {})


def _through(model: SlotModel, batch: Batch, places: list[int]) -> _Found:
    """The reconstructions through the slots, and the slots' masks; labels begin at 1."""
    device = next(model.parameters()).device
    image = batch["image"].to(device)
    slots_init = draw_slots(model, 0, 0, places).to(image)
    views = model.views(image, slots_init)
    labels, measures = segments(views.masks), {"mse": likeness(views.reconstruction, image)["mse"]}
    if views.cross_entropy is not None:
        measures["cross_entropy"] = views.cross_entropy
    if "mask" in batch:
        agreed = agreement(batch["mask"].to(device), labels)
        measures |= {"fg_ari": agreed["fg_ari"], "mbo": agreed["overlap"] / agreed["objects"]}
    f = model.refinement(image)
    measures["spectral_norm"] = spectral_norm(f, model.slot_attention.solver(f, slots_init).z, tol=1e-3)
    return _Found(views.reconstruction, labels + 1, views.masks, measures)


def table(looks: dict[str, list[Look]]) -> pd.DataFrame:
    """One row per model and image: `model`, `image` (its number in the split), and the measures; NaN if not defined."""
    rows = [
        {"model": name, "image": number, **look.measures}
        for name, of_images in looks.items()
        for number, look in enumerate(of_images)
        if look.measures
    ]
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(frame.columns[2:], float))


def differences(looks: dict[str, list[Look]]) -> pd.DataFrame:
    """How much the models differ in each measure: the largest value minus the smallest. One row per image; NaN if fewer
    than two models have a value."""
    images = table(looks).drop(columns="model").groupby("image")
    return (images.max() - images.min()).where(images.count() > 1)
