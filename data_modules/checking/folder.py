"""Any folder of images: PNG and JPEG files of any sizes, masks of the same stems in `masks/`, lists of the splits."""

from collections import Counter
from functools import partial
from pathlib import Path

from data_modules.base import split_70_15_15
from data_modules.checking.decoding import check_item
from data_modules.checking.lists import check_lists, split_line
from data_modules.checking.survey import Survey
from data_modules.image_files import CENTRE, Item
from data_modules.image_folder import SPLITS, SUFFIXES
from implicit_slate.errors import UserError


def survey(folder: Path) -> Survey:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none")
    lists = {split: folder / f"{split}.txt" for split in SPLITS}
    masks = folder / "masks" if (folder / "masks").is_dir() else None
    counts, problems = [f"{len(images)} images, {'with' if masks else 'no'} masks"], []
    if others := len(files) - len(images) - sum(path.is_file() for path in lists.values()):
        counts.append(f"{others} other files, ignored")
    if any(path.is_file() for path in lists.values()):
        wrong, names = check_lists(lists, {path.name for path in images}, f"the name of an image in {folder}")
        counts.append(split_line("split by lists", names))
        problems += wrong
    else:
        try:
            parts = split_70_15_15([path.name for path in images], folder)
            counts.append(split_line("split by sorted name", dict(zip(SPLITS, parts, strict=True))))
        except UserError as error:
            problems.append(str(error))
    if masks:
        problems += _compare_masks(masks, images)
    items = [Item(path, masks and masks / f"{path.stem}.png") for path in images]
    return Survey(
        ((item.image.name, item) for item in items),
        len(items),
        partial(check_item, crop=CENTRE),
        counts=counts,
        problems=problems,
    )


def _compare_masks(masks: Path, images: list[Path]) -> list[str]:
    """Masks without an image, and images that would share a mask."""
    stems = Counter(path.stem for path in images)
    problems = [
        f"{path}: expected a stem of its own, for its mask {masks / path.stem}.png serves {stems[path.stem]}"
        for path in images
        if stems[path.stem] > 1
    ]
    for path in sorted(masks.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix != ".png":
            problems.append(f"{path}: expected only PNG files in {masks}")
        elif path.stem not in stems:
            problems.append(f"{path}: expected an image of the same stem in {masks.parent}, found none")
    return problems
