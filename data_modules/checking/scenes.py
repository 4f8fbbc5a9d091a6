"""CLEVR-Mirror in its authors' layout: `images/`, `scenes/` and, where there are some, `masks/`."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from data_modules.base import split_70_15_15
from data_modules.checking.decoding import check_item, read_labels
from data_modules.checking.survey import Checked, Survey, compare_sizes
from data_modules.image_files import Item
from implicit_slate.errors import UserError

NAME = re.compile(r"CLEVR_new_\d{10}")


class SceneFiles(NamedTuple):
    """The files of one scene; None where the folder has none of that kind."""

    item: Item
    scene: Path | None


def survey(folder: Path) -> Survey:
    images = folder / "images"
    if not images.is_dir():
        raise UserError(f"{images}: expected the folder of CLEVR-Mirror's images (CLEVR_new_*.png), found none")
    paths = sorted(images.glob("*.png"))
    if not paths:
        raise UserError(f"{images}: expected images (CLEVR_new_*.png), found no PNG file")
    masks, scenes = (there if (there := folder / kind).is_dir() else None for kind in ("masks", "scenes"))
    files = [
        SceneFiles(Item(path, masks and masks / path.name), scenes and scenes / f"{path.stem}.json") for path in paths
    ]
    problems = [
        f"{path}: expected a name like CLEVR_new_0000000000.png" for path in paths if not NAME.fullmatch(path.stem)
    ]
    stems = {path.stem for path in paths}
    for place, suffix in ((images, ".png"), (masks, ".png"), (scenes, ".json")):
        for path in sorted(place.iterdir()) if place else ():
            if path.suffix != suffix and not path.name.startswith("."):
                problems.append(f"{path}: expected only {suffix[1:].upper()} files in {place}")
            elif path.suffix == suffix and path.stem not in stems:
                problems.append(f"{path}: expected an image of the same name, {images / path.stem}.png, found none")
    counts = [f"{len(files)} images, {'with' if masks else 'no'} masks, {'with' if scenes else 'no'} scene files"]
    try:
        parts = split_70_15_15(paths, images)
        counts.append(
            "split by sorted name: "
            + ", ".join(
                f"{name} {len(part)}" for name, part in zip(("train", "validation", "test"), parts, strict=True)
            )
        )
    except UserError as error:
        problems.append(str(error))
    return Survey(
        zip((path.name for path in paths), files, strict=True),
        len(files),
        check,
        counts=counts,
        problems=problems,
        conclude=compare_sizes,
    )


def check(files: SceneFiles) -> Checked:
    checked = check_item(files.item)
    if files.scene is not None:
        checked.problems.extend(_compare_scene(files, checked))
    return checked


def _compare_scene(files: SceneFiles, checked: Checked) -> list[str]:
    """What is wrong with the scene file, and with the values of its mask, if that could be read."""
    image = files.item.image.name
    try:
        scene = json.loads(files.scene.read_bytes())
        name, num_objects = scene["image_filename"], len(scene["objects"])
    except FileNotFoundError:
        return [f"{files.scene}: expected the scene file of {image}, found nothing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return [f"{files.scene}: expected a scene file, JSON with `image_filename` and `objects` ({reason})"]
    if name != image:
        return [f"{files.scene}: expected image_filename {image}, found {name}"]
    if checked.num_objects is None:
        return []
    found = read_labels(files.item, None)
    if found == [*range(1, num_objects + 1)]:
        return []
    return [f"{files.item.mask}: expected the values 1 to {num_objects}, the objects of {files.scene}, found {found}"]
