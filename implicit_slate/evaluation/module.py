"""An evaluation as a LightningModule: it sends batches of images through a model and measures the results."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data_modules.base import Batch, Images
from implicit_slate.errors import UserError
from implicit_slate.measures import REFERENCES
from implicit_slate.metrics.inception import Inception, to_uint8
from implicit_slate.metrics.likeness import likeness
from implicit_slate.metrics.segmentation import agreement, bound, segments
from implicit_slate.models import SlotModel
from implicit_slate.models.portable import SUFFIX, load_pretrained
from implicit_slate.models.slot_model import interpolate
from implicit_slate.training.checkpoints import Trained, load_trained

TRUTH, CEILING, BOUND, RANDOM_WEIGHTS = "truth", *REFERENCES
"""The passes over the images besides those named `0`, `1`, … after the draw of the initial slots."""

FEATURES, PLACE = "features", ("", "place")


class Evaluation(L.LightningModule):
    """Measures a model; a batch has the indices (B,) of images in `images`.

    After `trainer.test` every process has the same results, which do not depend on batch size and number of processes:

    - `measured`: one row per image and pass, with the columns `image`, `draw` (the pass) and the measures;
    - `features`: `inception`'s features by pass, float32 (N, 2048); empty without `inception`.

    Args:
        metrics: which of `METRICS` to measure. For `segmentation` alone no image is generated.
        draws: D, number of draws of the initial slots.
        true_features: the features of the true images (N, 2048), if they are already known.
        untrained: for `segmentation`, the same model with random weights; one draw of its masks is measured.
        bilinear: measure masks after bilinear interpolation; then there is no bound, because it holds for cells only.
    """

    advance: Callable[[int], None] | None = None
    """Called with 1 after each batch."""

    def __init__(
        self,
        model: SlotModel,
        images: Images,
        metrics: Collection[str],
        draws: int,
        seed: int,
        inception: Inception | None,
        true_features: Tensor | None,
        untrained: SlotModel | None,
        bilinear: bool,
    ):
        super().__init__()
        self.model, self.images, self.inception = model, images, inception
        self.untrained, self.bilinear = untrained, bilinear
        self.metrics, self.draws, self.seed = metrics, draws, seed
        self.measured = pd.DataFrame()
        self.features = {} if true_features is None else {TRUTH: true_features}
        self._kept: defaultdict[tuple[str, str], list[Tensor]] = defaultdict(list)
        """The results of this process, by pass and name: one tensor per batch."""

    def test_step(self, index: Tensor, batch_idx: int) -> None:
        places = index.tolist()
        batch = {name: value.to(self.device) for name, value in self.images[places].items()}
        image, masks_only = batch["image"], set(self.metrics) == {"segmentation"}
        self._kept[PLACE].append(index)
        if TRUTH not in self.features:
            self._keep(TRUTH, {}, image)
        if not masks_only and (ceiling := self.model.ceiling(image)) is not None:
            self._keep(CEILING, likeness(ceiling, image), ceiling)
        for draw in range(self.draws):
            slots_init = draw_slots(self.model, self.seed, draw, places).to(image)
            values, picture = {}, None
            if masks_only:
                masks = self.model.segment(image, slots_init)
            else:
                picture, masks, cross_entropy = self.model.views(image, slots_init)
                values = likeness(picture, image)
                if cross_entropy is not None:
                    values["cross_entropy"] = cross_entropy
            if "segmentation" in self.metrics:
                values |= self._agreement(batch, masks)
            self._keep(str(draw), values, picture)
        if "segmentation" in self.metrics:
            if not self.bilinear:
                self._keep(BOUND, bound(batch["mask"], self.model.mask_side))
            masks = self.untrained.segment(image, draw_slots(self.untrained, self.seed, 0, places).to(image))
            self._keep(RANDOM_WEIGHTS, self._agreement(batch, masks))
        if self.advance:
            self.advance(1)

    def measured_masks(self, masks: Tensor) -> Tensor:
        """A model's masks (B, K, H, W) as they are measured and shown: interpolated if `bilinear`."""
        return interpolate(masks, self.model.mask_side) if self.bilinear else masks

    def _agreement(self, batch: Batch, masks: Tensor) -> dict[str, Tensor]:
        return agreement(batch["mask"], segments(self.measured_masks(masks)))

    def _keep(self, name: str, values: dict[str, Tensor], picture: Tensor | None = None) -> None:
        for what, value in values.items():
            self._kept[name, what].append(value.double())
        if self.inception is not None and picture is not None:
            self._kept[name, FEATURES].append(self.inception(to_uint8(picture)))

    def on_test_epoch_end(self) -> None:
        own = {key: torch.cat(batches) for key, batches in self._kept.items()}
        found = {key: values.reshape(-1, *own[key].shape[1:]) for key, values in self.all_gather(own).items()}
        places = found.pop(PLACE)
        order = torch.full((len(self.trainer.test_dataloaders.dataset),), -1, device=self.device)
        order[places] = torch.arange(len(places), device=self.device)  # images that a sampler repeated count once
        if order.min() < 0:
            raise RuntimeError(f"{int((order < 0).sum())} of {len(order)} images were left out by every process")
        passes: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for (name, what), values in found.items():
            passes[name][what] = values[order].cpu()
        self.features |= {name: found.pop(FEATURES) for name, found in passes.items() if FEATURES in found}
        frames = {name: pd.DataFrame(values) for name, values in passes.items() if values}
        self.measured = pd.concat(frames, names=["draw", "image"]).swaplevel().reset_index()


def load_image_model(path: Path) -> Trained:
    """Load a model with slots that makes images, from a checkpoint, a file of `implicit-slate export`, or by the name
    of a model that comes with the project. Raises `UserError` for anything else."""
    exported = path.suffix == SUFFIX or not path.is_file()  # a folder here may have the same name as a model
    trained = Trained(load_pretrained(path), None) if exported else load_trained(path)
    kind = type(trained.model).__name__
    if not isinstance(trained.model, SlotModel):
        raise UserError(f"{path}: a {kind} has no slots")
    if not trained.model.makes_images:
        raise UserError(f"{path}: a {kind} makes no images; `implicit-slate validate` measures it")
    return trained


def draw_slots(model: SlotModel, seed: int, draw: int, places: Sequence[int]) -> Tensor:
    """Initial slots (B, K, S). Each image's slots are a function of the seed, the draw and the image's index in the
    split, so they depend on neither the batch size nor the number of processes."""
    slots = []
    for place in places:
        state = np.random.SeedSequence((seed, draw, place)).generate_state(1, np.uint64)[0]
        slots.append(model.sample_slots(1, torch.Generator().manual_seed(int(state >> np.uint64(1)))))
    return torch.cat(slots).detach()
