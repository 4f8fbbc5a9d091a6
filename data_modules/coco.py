"""COCO-2017 with instance masks, read by FiftyOne from a copy in its zoo's layout or from a plain COCO folder."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch.utils.data import DataLoader

from data_modules.base import Splits
from data_modules.cached import CachedDataModule, Examined
from data_modules.image_files import CENTRE, Crop, Item, Size, open_image, resize_image, resize_mask
from data_modules.sources import Decoded, FileSource, Source
from implicit_slate.allowed import MultipleOf4, PositiveInt
from implicit_slate.errors import UserError

ZOO_NAMES = {"train": "train", "val": "validation", "test": "test"}
"""FiftyOne's names of the splits."""
SIZES = {"train": 118_287, "val": 5_000}
"""Number of images in COCO-2017."""
MAX_INSTANCES = 255  # that a uint8 mask can label


class COCO(CachedDataModule):
    """Photographs with instance masks, in the original training and validation splits; the test split has no masks.

    `root` is either a folder of FiftyOne's zoo (its FIFTYONE_DATASET_ZOO_DIR), with `coco-2017/raw/instances_*.json`
    and `coco-2017/<train|validation|test>/data/*.jpg`, or a plain COCO folder, with `annotations/instances_*.json`,
    `train2017/`, `val2017/` and `test2017/`. The test images are needed only for testing.

    A mask numbers the instances of an image; where two overlap, the smaller one is on top. Boxes are not used. Crowd
    annotations are left out, so their pixels are background; `num_crowds` counts them per split.

    Args:
        root: the folder of the data.
        max_samples: use only this many images of each split, the first by id. Required for a partial copy in the zoo.
    """

    crop = CENTRE  # not turned upright by EXIF: the annotations refer to the pixels as stored

    def __init__(
        self,
        root: str | Path,
        image_size: MultipleOf4 = 96,
        batch_size: PositiveInt = 50,
        max_samples: PositiveInt | None = None,
        **options,
    ):
        super().__init__(root, image_size, batch_size, **options)
        self.max_samples = self.selection = max_samples
        self.num_crowds: dict[str, int] = {}

    def sources(self) -> dict[str, Source]:
        sources = {key: source for key in SIZES if (source := self._annotated(key))}
        for key, source in sources.items():
            count = len(list_images(source.images))
            if source.partial and self.max_samples is None and self.problems is None and count < SIZES[key]:
                needed = "max_samples must be given for a partial copy"
                raise UserError(f"{source.images}: holds {count} of {SIZES[key]} images; {needed}")
        folder, _, _ = self._locate("test")
        names = list_images(folder)[: self.max_samples] if folder.is_dir() else []
        return sources | {"test": FileSource([Item(folder / name) for name in names], self.image_size, self.crop)}

    def sources_to_check(self) -> dict[str, Source]:
        import_coco_utils()  # if FiftyOne is missing, the data is not to blame
        return self.sources()

    def load(self) -> Splits:
        splits = super().load()
        self.num_crowds = {key: int(splits._asdict()[key].counts.sum()) for key in SIZES}
        return splits

    def test_dataloader(self) -> DataLoader:
        if not len(self.splits.test):
            raise UserError(f"{self._locate('test')[0]}: expected the test images of COCO-2017, found none")
        return super().test_dataloader()

    def sample_name(self, piece: "Item | Annotated") -> str:
        return piece.image.relative_to(self.root).as_posix()

    def examine(self, source: Source, piece: "Item | Annotated") -> Examined:
        if isinstance(piece, Item):
            return super().examine(source, piece)
        examined = super().examine(source, Item(piece.image))
        examined.problems.extend(source.faults(piece, examined.size))
        # masks of another size than the image's tell nothing, and a wrong size may be more than fits into memory
        for thing in piece.things if examined.size in (None, piece.size) else ():
            try:
                check_mask(thing.segmentation, *piece.size)
            except ValueError as error:
                examined.problems.append(
                    f"{source.annotations}: annotation {thing.id} of {piece.image.name}: expected a mask of "
                    f"{piece.size[0]} × {piece.size[1]} pixels ({error})"
                )
        return examined._replace(labels=range(1, 1 + len(piece.instances)))

    def _locate(self, key: str) -> tuple[Path, Path, bool]:
        """(image folder, annotation file, partial): where a split's files must be, and whether images may be missing,
        as in a partial download by the zoo. UserError if `root` has neither layout of COCO-2017."""
        zoo, plain, file = self.root / "coco-2017", self.root / "annotations", f"instances_{key}2017.json"
        if zoo.is_dir():
            return zoo / ZOO_NAMES[key] / "data", zoo / "raw" / file, True
        if plain.is_dir():
            return self.root / f"{key}2017", plain / file, False
        raise UserError(
            f"{self.root}: expected COCO-2017, either coco-2017/ of FiftyOne's zoo or annotations/ beside "
            f"train2017/ and val2017/; found neither"
        )

    def _annotated(self, key: str) -> "AnnotatedImages | None":
        images, file, partial = self._locate(key)
        if not images.is_dir():
            self.wrong(f"{images}: expected the folder of COCO-2017's {key} images, found none")
        elif not file.is_file():
            self.wrong(f"{file}: expected COCO-2017's annotations of the {key} split, found no file")
        elif not list_images(images):
            self.wrong(f"{images}: the {key} split is empty; expected *.jpg")
        else:
            return AnnotatedImages(
                images, file, partial, self.max_samples, self.image_size, self.wrong, self.suspect, self.crop
            )
        return None


class Annotated(NamedTuple):
    """An image of a split with its annotations."""

    image: Path
    size: Size
    """According to the annotations."""
    things: Sequence[Any]
    """FiftyOne's `COCOObject` of each annotation, including crowds."""

    @property
    def instances(self) -> list[Any]:
        return [thing for thing in self.things if not thing.iscrowd]


@dataclass(frozen=True)
class AnnotatedImages(Source):
    """The images of a split that are listed in its annotations, ordered by id, with instance masks.

    Args:
        images: the folder of the images.
        annotations: the JSON file of the annotations.
        partial: whether listed images may be missing.
        max_samples: use only this many images, the first ones; None: all.
        wrong: called with each problem that prevents loading the split.
        suspect: called with each problem that does not prevent it.
    """

    images: Path
    annotations: Path
    partial: bool
    max_samples: int | None
    size: int
    wrong: Callable[[str], None]
    suspect: Callable[[str], None]
    crop: Crop

    def __repr__(self) -> str:
        return f"AnnotatedImages({self.partial}, {self.max_samples}, {self.size}, {self.crop})"

    def count(self) -> int:
        """Too large if the folder has images that are not listed."""
        return len(list_images(self.images)[: self.max_samples])

    def files(self) -> list[Path]:
        return [self.annotations, *(self.images / name for name in list_images(self.images))]

    def stored(self) -> Iterator[Annotated]:
        utils, file, there = import_coco_utils(), self.annotations, set(list_images(self.images))
        rank_zero_info(f"COCO: FiftyOne reads {file}")
        try:
            listed, things = utils.load_coco_detection_annotations(str(file), extra_attrs=False)[-2:]
            used = [
                Annotated(self.images / image["file_name"], (image["width"], image["height"]), things.pop(key, ()))
                for key, image in sorted(listed.items())
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{file}: expected COCO's annotations, JSON with `images` and `annotations` ({reason})"
            ) from None
        for thing in (thing for left in things.values() for thing in left):
            self.suspect(f"{file}: annotation {thing.id}: expected an image with the id {thing.image_id}, found none")
        for name in sorted(there - {image.image.name for image in used}):
            self.suspect(f"{self.images / name}: expected only images that {file} lists")
        used = [image for image in used if image.image.name in there or not self.partial][: self.max_samples]
        used = [image._replace(size=self._whole(image)) for image in used]
        for image in used:
            if image.image.name not in there:
                self.wrong(f"{image.image}: expected the image that {file} lists, found nothing")
        if not used:
            self.wrong(f"{file}: expected a list of the images in {self.images}, found none")
        num_instances = sum(len(image.instances) for image in used)
        num_crowds = sum(len(image.things) for image in used) - num_instances
        counted = f"{len(used)} images, {num_instances} instances"
        rank_zero_info(f"{file}: {counted}; {num_crowds} annotations of crowds left out")
        return (image for image in used if image.image.name in there)

    def decode(self, piece: Annotated) -> Decoded:
        whole, cropped = open_image(piece.image, self.crop)
        for fault in self.faults(piece, whole.size):
            raise UserError(fault)
        mask = self.crop.apply(Image.fromarray(self.label_map(piece)), piece.image)
        converted = [(piece.image, whole.mode)] if whole.mode != "RGB" else []
        num_crowds = len(piece.things) - len(piece.instances)
        return Decoded(
            resize_image(cropped, self.size)[None], resize_mask(mask, self.size)[None], [num_crowds], converted
        )

    def label_map(self, piece: Annotated) -> np.ndarray:
        """uint8 (height, width): 0 = background, i = the i-th instance; see `overlay`. An instance without a
        segmentation has no pixels."""
        height, width = piece.size[::-1]
        masks = []
        for thing in piece.instances:
            thing = copy(thing)
            thing.bbox = [0, 0, width, height]  # FiftyOne crops to the box, which may be empty, wrong or missing
            what = f"{self.annotations}: annotation {thing.id} of {piece.image.name}"
            try:
                check_readable(thing.segmentation, width, height)
            except ValueError as error:
                raise UserError(f"{what}: expected a mask of {width} × {height} pixels ({error})") from None
            try:
                mask = thing.to_detection(piece.size, load_segmentation=True).mask
            except Exception as error:  # pycocotools has no error types of its own
                raise UserError(f"{what}: FiftyOne cannot read it ({error!r})") from None
            masks.append(np.zeros((height, width), bool) if mask is None else mask)
        return overlay(masks, height, width)

    def _whole(self, image: Annotated) -> Size:
        """The image's size. UserError if it is no count of pixels; one that was written as 640.0 is."""
        for side, value in zip(("width", "height"), image.size, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or value % 1:
                expected = f"expected a {side} in whole pixels by {self.annotations}"
                raise UserError(f"{image.image}: {expected}, found {value!r}")
        return int(image.size[0]), int(image.size[1])

    def faults(self, piece: Annotated, found: Size | None) -> Iterator[str]:
        """Why the annotations do not fit the image, whose size is `found` (None: unknown)."""
        if found not in (None, piece.size):
            wanted, found = ("{} × {}".format(*size) for size in (piece.size, found))
            yield f"{piece.image}: expected {wanted} pixels by {self.annotations}, found {found}"
        if (count := len(piece.instances)) > MAX_INSTANCES:
            yield f"{piece.image}: expected at most {MAX_INSTANCES} instances, found {count}"


def list_images(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".jpg") and name[0] != ".")


def import_coco_utils() -> ModuleType:
    """`fiftyone.utils.coco`, imported only when needed because that takes seconds. UserError if it is missing."""
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    try:
        import fiftyone.utils.coco
        import pycocotools  # noqa: F401 (FiftyOne would offer to install it)
    except ImportError as error:
        needs = f"the extra 'coco': make setup EXTRAS=coco ({error})"
        raise UserError(f"COCO is read through FiftyOne, which needs {needs}") from None
    return fiftyone.utils.coco


def overlay(masks: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """One label map of an image's instances, given as masks, bool (height, width).

    Returns:
        uint8 (height, width): 0 = background, i = the i-th instance. Where instances overlap, the one with the smaller
        area is on top; of two with equal areas, the later one.
    """
    labels = np.zeros((height, width), np.uint8)
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        labels[masks[i]] = i + 1
    return labels


def check_readable(segmentation: Any, width: int, height: int) -> None:
    """ValueError if pycocotools must not be given this segmentation of an image of this size, because it would take
    memory in proportion to the coordinates, drop the last number of an odd count, or leave the pixels undefined that a
    run-length code lacks. Anything else that is wrong may pass."""
    if isinstance(segmentation, list):
        reach = np.array((width, height)) * 1.5  # from the centre: polygons may end outside of the image
        for part in segmentation:
            try:
                numbers = np.asarray(part, float)
            except (TypeError, ValueError, OverflowError):
                raise ValueError("a polygon is a list of numbers") from None
            if numbers.size % 2:
                raise ValueError("a polygon has two numbers for each corner")
            if not (abs(numbers.reshape(-1, 2) - reach / 3) <= reach).all():  # also refuses NaN
                raise ValueError("a polygon has a corner far outside of the image")
    elif isinstance(segmentation, dict) and segmentation:
        if (size := segmentation.get("size")) != [height, width]:
            raise ValueError(f"its run-length code has the size {size}, not {[height, width]}")
        counts = segmentation.get("counts")
        try:
            runs = _uncompressed(counts) if isinstance(counts, str) else [*map(int, counts)]
        except (TypeError, ValueError, OverflowError):
            raise ValueError("its run-length code is malformed") from None
        if min(runs, default=0) < 0:
            raise ValueError("its run-length code has a negative run")
        if (total := sum(runs)) != width * height:
            raise ValueError(f"its run-length code has {total} pixels")


def _uncompressed(code: str) -> list[int]:
    """The runs of a compressed run-length code, as by pycocotools' `rleFrString`: numbers to the base 32, the lowest
    digit first, which from the fourth on are differences to the run before the last."""
    numbers = re.findall("[P-o]*[0-O]", code)
    if "".join(numbers) != code or len(max(numbers, key=len, default="")) > 7:
        raise ValueError("malformed")
    runs: list[int] = []
    for number in numbers:
        run = sum((ord(digit) - 48 & 31) << 5 * i for i, digit in enumerate(number))
        run -= (number[-1] >= "@") << 5 * len(number)  # a sign
        runs.append(run + (runs[-2] if len(runs) > 2 else 0))
    return runs


def check_mask(segmentation: Any, width: int, height: int) -> None:
    """ValueError if the polygons or the run-length code are not a valid mask of an image of this size."""
    from pycocotools import mask

    if not segmentation:
        raise ValueError("no segmentation")
    check_readable(segmentation, width, height)
    try:
        if isinstance(segmentation, list):
            if any(len(part) < 6 for part in segmentation):  # pycocotools reads four as a box
                raise ValueError("a polygon has at least three corners")
            segmentation = mask.frPyObjects(segmentation, height, width)
        elif isinstance(segmentation["counts"], list):
            segmentation = mask.frPyObjects(segmentation, height, width)
        mask.decode(segmentation)
    except Exception as error:  # pycocotools has no error types of its own
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
