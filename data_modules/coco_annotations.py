"""COCO's annotations: compared with the images, and drawn once through FiftyOne, as one mask file per image.

FiftyOne keeps what it reads in a database, and starts its server by its own means. It works in a process of its own,
`python -m data_modules.coco_annotations`, so that server and FiftyOne end when the masks are drawn.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_modules.progress import track
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically
from implicit_slate.processes import PARENT, end_with_parent

FIELD = "instances"
MAX_INSTANCES = 255  # in a mask of bytes


class Split(NamedTuple):
    """A split of COCO-2017 on disk."""

    name: str
    """train, val, test"""
    images: Path
    annotations: Path
    partial: bool
    """Images that the annotations list may be missing, as in a part of FiftyOne's zoo."""
    max_samples: int | None
    """The first so many images, by id; None: all."""


class Index(NamedTuple):
    """What was drawn of a split, as `index.json` keeps it beside the masks."""

    images: list[str]
    """By id; the mask of a.jpg is masks/a.png."""
    num_instances: int
    num_crowds: int
    """Annotations of crowds, which no mask shows."""


def refuse(problem: str) -> None:
    raise UserError(problem)


def read_annotations(
    split: Split, wrong: Callable[[str], None] = refuse, suspect: Callable[[str], None] = lambda problem: None
) -> list[dict]:
    """The images of a split that are to be used, by id: what COCO says of each, and its annotations as `things`.

    Args:
        wrong: is told because of what the split cannot be loaded.
        suspect: is told what loading does not mind.
    """
    file, there = split.annotations, set(list_images(split.images))
    try:
        content = json.loads(file.read_bytes())
        images = {image["id"]: image | {"things": []} for image in sorted(content["images"], key=lambda i: i["id"])}
        names = {image["file_name"] for image in images.values() if image["width"] and image["height"]}
        for thing in content["annotations"]:
            if thing["image_id"] in images:
                images[thing["image_id"]]["things"].append(thing)
            else:
                found = f"an image with the id {thing['image_id']}, found none"
                suspect(f"{file}: annotation {thing.get('id')}: expected {found}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        wrong(f"{file}: expected COCO's annotations, JSON with `images` and `annotations` ({reason})")
        return []
    for name in sorted(there - names):
        suspect(f"{split.images / name}: expected only images that {file} lists")
    used = [image for image in images.values() if image["file_name"] in there or not split.partial]
    used = used[: split.max_samples]
    for image in used:
        if image["file_name"] not in there:
            wrong(f"{split.images / image['file_name']}: expected the image that {file} lists, found nothing")
    if not used:
        wrong(f"{file}: expected a list of the images in {split.images}, found none")
    return [image for image in used if image["file_name"] in there]


def list_images(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))


def read_index(folder: Path) -> Index:
    return Index(**json.loads((folder / "index.json").read_text()))


def check_mask(segmentation: Any, width: int, height: int) -> None:
    """ValueError if the polygons or the run-length code make no mask of an image of that size."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            if not segmentation or any(len(part) < 6 for part in segmentation):  # pycocotools takes four for a box
                raise ValueError("a polygon has at least three corners")
            segmentation = mask.frPyObjects(segmentation, height, width)
        elif isinstance(segmentation["counts"], list):
            if (total := sum(segmentation["counts"])) != width * height:  # pycocotools fills up what is missing
                raise ValueError(f"its run-length code has {total} pixels")
            segmentation = mask.frPyObjects(segmentation, height, width)
        found = mask.decode(segmentation).shape
    except Exception as error:  # pycocotools has no errors of its own
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    if found[:2] != (height, width):
        raise ValueError(f"its run-length code is of {found[1]} × {found[0]}")


def draw_masks(splits: Sequence[Split], out: Path) -> None:
    """Lets a process with FiftyOne write masks to `out/<a split's name>`, for each split, and at the end its index.

    Raises:
        UserError: no FiftyOne, no database, annotations or images that are not as expected, a full disk.
    """
    settings = {
        PARENT: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_SHOW_PROGRESS_BARS": str(sys.stderr.isatty()).lower(),
        "FIFTYONE_LOGGING_LEVEL": "ERROR",
    }
    done = subprocess.run(
        [sys.executable, "-m", "data_modules.coco_annotations", json.dumps(splits, default=str), str(out)],
        env=os.environ | settings,
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one
    )
    if (error := out / "error").exists():
        raise UserError(error.read_text())
    if done.returncode:
        raise RuntimeError(f"the process that reads COCO through FiftyOne ended with status {done.returncode}")


# From here on: what the process with FiftyOne does.


def main(splits: list[Split], out: Path) -> None:
    used = [read_annotations(split) for split in splits]
    _start_database()
    import fiftyone

    for split, images in zip(splits, used):
        name = f"implicit-slate-{uuid.uuid4().hex}"
        print(f"COCO {split.name}: FiftyOne reads the annotations of {len(images)} images", file=sys.stderr)
        try:
            dataset = fiftyone.Dataset.from_dir(
                dataset_type=fiftyone.types.COCODetectionDataset,
                data_path=str(split.images),
                labels_path=str(split.annotations),
                label_types=["segmentations"],
                label_field=FIELD,
                image_ids=[image["id"] for image in images],
                name=name,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{split.annotations}: FiftyOne cannot read it ({error!r})") from error
        try:
            samples = track(dataset.iter_samples(), f"COCO {split.name}: masks", len(images), unit="images")
            index = _draw(samples, split.images, out / split.name)
            write_atomically(out / split.name / "index.json", json.dumps(index._asdict()))
        finally:
            fiftyone.delete_dataset(name)


def _start_database() -> None:
    """Lets FiftyOne start its database, and wait for it longer than the minute that it would, as on a busy machine the
    imports alone take that. `FIFTYONE_DATABASE_URI` names another server."""
    global _database
    try:
        import fiftyone
        import fiftyone.core.service
        import pycocotools  # noqa: F401 (FiftyOne would offer to install it)
    except ImportError as error:
        needs = f"the extra 'coco': make setup EXTRAS=coco ({error})"
        raise UserError(f"COCO is read through FiftyOne, which needs {needs}") from None
    if fiftyone.config.database_uri is not None:
        return
    _database = fiftyone.core.service.DatabaseService()
    for tries_left in reversed(range(5)):
        try:
            fiftyone.config.database_uri = f"mongodb://127.0.0.1:{_database.port}"
            return
        except fiftyone.core.service.ServiceListenTimeout:
            if not tries_left or not _database.child.is_running():
                raise


_database = None
"""Kept to the end of the process, since FiftyOne stops the server with it."""


def _draw(samples: Iterable, images: Path, out: Path) -> Index:
    """Writes a mask for each of FiftyOne's samples."""
    names, num_instances, num_crowds = [], 0, 0
    for sample in samples:
        name = os.path.relpath(sample.filepath, images)
        labels = sample[FIELD] if sample.has_field(FIELD) else None
        detections = labels.detections if labels else []
        things = [thing for thing in detections if not thing.get_attribute_value("iscrowd", 0)]
        if len(things) > MAX_INSTANCES:
            raise UserError(f"{sample.filepath}: expected at most {MAX_INSTANCES} instances, found {len(things)}")
        width, height = sample.metadata.width, sample.metadata.height
        # FiftyOne crops a mask at int(round(y)), int(round(x)); the division by the image's size and back is not exact
        corners = [
            (round(round(thing.bounding_box[1] * height, 6)), round(round(thing.bounding_box[0] * width, 6)))
            for thing in things
        ]
        target = (out / "masks" / name).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        masks = [thing.get_mask().astype(bool) for thing in things]
        Image.fromarray(label_map(masks, corners, height, width)).save(target)
        names.append(name)
        num_instances, num_crowds = num_instances + len(things), num_crowds + len(detections) - len(things)
    return Index(names, num_instances, num_crowds)


def label_map(masks: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], height: int, width: int) -> np.ndarray:
    """One map of an image's instances.

    Args:
        masks: bool (h, w), each cropped to its box.
        corners: (top, left) of each box.

    Returns:
        uint8 (height, width): 0 = background, i = the i-th instance. Where instances overlap, the one of the smaller
        area is on top, and the later one of two of the same area.
    """
    labels = np.zeros((height, width), np.uint8)
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        (top, left), (h, w) = corners[i], masks[i].shape
        window = labels[top : top + h, left : left + w]
        window[masks[i][: window.shape[0], : window.shape[1]]] = i + 1
    return labels


def _one_line(error: Exception) -> str | None:
    """What the user is told; None: a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    of_database = type(error).__module__.startswith(("pymongo.", "mongoengine.", "fiftyone."))
    if of_database or isinstance(error, (OSError, RuntimeError)):
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"FiftyOne's database does not start or answer ({reason}); docs/coco.md says what it needs"
    return None


if __name__ == "__main__":
    end_with_parent()
    given = [Split(name, Path(images), Path(file), *more) for name, images, file, *more in json.loads(sys.argv[1])]
    try:
        with redirect_stdout(sys.stderr):  # FiftyOne writes to stdout
            main(given, Path(sys.argv[2]))
    except Exception as error:
        if (line := _one_line(error)) is None:
            raise
        write_atomically(Path(sys.argv[2], "error"), line)
        sys.exit(2)
