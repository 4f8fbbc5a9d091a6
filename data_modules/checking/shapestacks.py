"""ShapeStacks in its authors' layout. A sample is a scenario: all of its images and segmentations."""

import re
from pathlib import Path

from data_modules.checking.decoding import check_item
from data_modules.checking.lists import check_lists, split_line
from data_modules.checking.survey import Checked, Survey
from data_modules.image_files import Item
from data_modules.shapestacks import LISTS, ShapeStacks
from implicit_slate.errors import UserError

NAME = re.compile(r"env_(blocks|ccs)-(easy|hard)-h=\d+-vcom=\d+-vpsf=\d+-v=\d+")
SUBSETS = ("default", "blocks_all", "ccs_all")
MAX_OBJECTS = 6


def survey(folder: Path) -> Survey:
    recordings, splits = folder / "recordings", folder / "splits"
    for place in (recordings, splits):
        if not place.is_dir():
            raise UserError(f"{place}: expected this folder of ShapeStacks, found none")
    scenarios = sorted(path.name for path in recordings.iterdir() if not path.name.startswith("."))
    if not scenarios:
        raise UserError(f"{recordings}: expected scenarios (env_*), found none")
    problems = [
        f"{recordings / name}: expected a name like env_blocks-easy-h=2-vcom=0-vpsf=0-v=1"
        for name in scenarios
        if not NAME.fullmatch(name)
    ]
    counts, known, listed = [], set(scenarios), set()
    there = sorted(path.name for path in splits.iterdir() if path.is_dir())
    problems += [
        f"{splits / name}: expected this folder with the lists of a split, found none"
        for name in SUBSETS
        if name not in there
    ]
    for subset in there:
        files = {split: splits / subset / name for split, name in LISTS.items()}
        wrong, names = check_lists(files, known, f"the name of a scenario in {recordings}")
        problems += wrong
        counts.append(split_line(f"scenarios of {subset}", names))
        listed.update(*names.values())
    if unlisted := len(known - listed):
        counts.append(f"{unlisted} scenarios in no list")
    data, items = ShapeStacks(folder), {}
    for name in scenarios:
        try:
            items[name] = data.scenario(name)
        except UserError as error:
            problems.append(str(error))
    with_masks = [name for name, found in items.items() if found[0].mask]
    if 0 < len(with_masks) < len(items):
        fewer = with_masks if 2 * len(with_masks) < len(items) else sorted(items.keys() - set(with_masks))
        problems += [
            f"{recordings / name}: expected segmentations of all scenarios or of none, found "
            f"{'some' if fewer is with_masks else 'none'} here"
            for name in fewer
        ]
    counts.append(
        f"{len(scenarios)} scenarios, {sum(map(len, items.values()))} images, "
        f"{sum(item.mask is not None for found in items.values() for item in found)} segmentations"
    )
    return Survey(items.items(), len(items), check, unit="scenarios", counts=counts, problems=problems)


def check(items: list[Item]) -> Checked:
    results = [check_item(item, ShapeStacks.crop, ShapeStacks.open_mask) for item in items]
    problems = [problem for result in results for problem in result.problems]
    numbers = [result.num_objects for result in results if result.num_objects is not None]
    problems += [
        f"{item.mask}: expected at most {MAX_OBJECTS} shapes, found {result.num_objects}"
        for item, result in zip(items, results, strict=True)
        if (result.num_objects or 0) > MAX_OBJECTS
    ]
    sizes = [result.size for result in results if result.size]
    modes = sorted({result.mode for result in results} - {"RGB"})
    return Checked(
        str(items[0].image.parent),
        problems,
        sizes[0] if sizes else None,
        modes[0] if modes else "RGB",
        max(numbers, default=None),
    )
