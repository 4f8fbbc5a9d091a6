"""COCO-2017, as FiftyOne's zoo keeps it or as a plain COCO folder: images, and the annotations they have."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_modules.checking.decoding import check_item
from data_modules.checking.survey import Checked, Survey
from data_modules.image_files import CENTRE, Item
from implicit_slate.errors import UserError

SPLITS = {"train": ("train", 118_287), "validation": ("val", 5_000), "test": ("test", 40_670)}
"""By the names of FiftyOne's zoo: what COCO calls them, and how many images they have."""
MAX_OBJECTS = 255


class Photograph(NamedTuple):
    """An image, and what the annotations say of it."""

    path: Path
    source: Path | None
    """The file of the annotations; None: there is none for this split."""
    size: tuple[int, int] | None
    """(width, height)"""
    annotations: list[dict]


def survey(folder: Path) -> Survey:
    zoo = folder / "coco-2017"
    if not zoo.is_dir() and not (folder / "annotations").is_dir():
        raise UserError(
            f"{folder}: expected COCO-2017, either coco-2017/ of FiftyOne's zoo or annotations/ beside "
            f"train2017/ and val2017/; found neither"
        )
    _load_masks()
    photographs, counts, problems = [], [], []
    for name, (short, count) in SPLITS.items():
        images = zoo / name / "data" if zoo.is_dir() else folder / f"{short}2017"
        annotations = (zoo / "raw" if zoo.is_dir() else folder / "annotations") / f"instances_{short}2017.json"
        if not images.is_dir():
            counts.append(f"{name}: no images")
            if name != "test":
                problems.append(f"{images}: expected the folder of the {name} images, found none")
            continue
        there = {path.name for path in images.glob("*.jpg")}
        found = [Photograph(images / file, None, None, []) for file in sorted(there)]
        if not there:
            problems.append(f"{images}: the {name} split is empty; expected *.jpg")
        elif name != "test":
            try:
                found, wrong = _annotated(images, annotations, there, partial=zoo.is_dir())
                problems += wrong
            except UserError as error:
                problems.append(str(error))
        photographs += found
        things = [thing for photograph in found for thing in photograph.annotations]
        crowds = sum(bool(thing.get("iscrowd")) for thing in things if isinstance(thing, dict))
        counts.append(f"{name}: {len(there)} of {count} images, {len(things) - crowds} instances, {crowds} crowds")
    return Survey(
        ((photograph.path.relative_to(folder).as_posix(), photograph) for photograph in photographs),
        len(photographs),
        check,
        counts=counts,
        problems=problems,
    )


def check(photograph: Photograph) -> Checked:
    checked = check_item(Item(photograph.path), CENTRE)
    if photograph.source is None:
        return checked
    problems = checked.problems
    if checked.size and photograph.size != checked.size:
        width, height = photograph.size
        problems.append(
            f"{photograph.path}: expected {width} × {height} pixels, as {photograph.source} says, found "
            f"{checked.size[0]} × {checked.size[1]}"
        )
    things = [thing for thing in photograph.annotations if not thing.get("iscrowd")]
    if len(things) > MAX_OBJECTS:
        problems.append(f"{photograph.path}: expected at most {MAX_OBJECTS} instances, found {len(things)}")
    for thing in photograph.annotations:
        try:
            _decode_mask(thing["segmentation"], *photograph.size)
        except Exception as error:  # pycocotools has no errors of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            problems.append(
                f"{photograph.source}: annotation {thing.get('id')} of {photograph.path.name}: expected a "
                f"mask of {photograph.size[0]} × {photograph.size[1]} pixels ({reason})"
            )
    return checked._replace(num_objects=len(things))


def _annotated(images: Path, file: Path, there: set[str], partial: bool) -> tuple[list[Photograph], list[str]]:
    """The photographs that the annotations list, and what is wrong with the list. A `partial` copy may lack images."""
    try:
        content = json.loads(file.read_bytes())
        listed = {image["id"]: image for image in content["images"]}
        sizes = {id_: (int(image["width"]), int(image["height"])) for id_, image in listed.items()}
        names = {id_: str(image["file_name"]) for id_, image in listed.items()}
        owners = [thing["image_id"] for thing in content["annotations"]]
    except FileNotFoundError:
        raise UserError(f"{file}: expected COCO's annotations, found no file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: expected COCO's annotations, JSON with images and annotations ({reason})") from None
    problems = []
    things: dict[Any, list[dict]] = {id_: [] for id_ in listed}
    for owner, thing in zip(owners, content["annotations"], strict=True):
        if owner in things:
            things[owner].append(thing)
        else:
            problems.append(f"{file}: annotation {thing.get('id')}: expected an image with the id {owner}, found none")
    if len(listed) < len(content["images"]):
        problems.append(f"{file}: expected every id of an image once, {len(content['images']) - len(listed)} are again")
    problems += _compare(images, file, there, sorted(names.values()), partial)
    found = [
        Photograph(images / names[id_], file, sizes[id_], things[id_])
        for id_ in sorted(listed, key=names.get)
        if names[id_] in there
    ]
    return found, problems


def _compare(images: Path, file: Path, there: set[str], names: list[str], partial: bool) -> Iterator[str]:
    for name in sorted(there - set(names)):
        yield f"{images / name}: expected only images that {file} lists"
    for name in names if not partial else ():
        if name not in there:
            yield f"{images / name}: expected the image that {file} lists, found nothing"


def _decode_mask(segmentation: list | dict, width: int, height: int) -> None:
    mask = _load_masks()
    if isinstance(segmentation, list) and not (segmentation and all(len(part) >= 6 for part in segmentation)):
        raise ValueError("a polygon has at least three corners")
    if isinstance(segmentation, dict) and list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its run-length code is of {segmentation['size'][1]} × {segmentation['size'][0]}")
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        if (total := sum(segmentation["counts"])) != width * height:
            raise ValueError(f"its run-length code has {total} pixels")
    coded = isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list)
    mask.decode(segmentation if coded else mask.frPyObjects(segmentation, height, width))


def _load_masks():
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(f"checking COCO needs the extra 'coco': make setup EXTRAS=coco ({error})") from None
    return mask
