"""`implicit-slate data write`: write the data of an experiment file as a folder for `data_modules.ImageFolder`.

DIR/<split>_<number>.png         RGB
DIR/masks/<split>_<number>.png   8-bit, one channel, if the data has masks: 0 background, i the i-th object
DIR/{train,val,test}.txt         the lists of the splits
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from implicit_slate.errors import ArgumentParser, UserError

if TYPE_CHECKING:  # these import PyTorch, which `--help` does not need
    from data_modules.base import Images, Splits

AT_A_TIME = 50
"""How many images are read at a time."""
EXAMPLES = """implicit-slate data write experiments/sprites.yaml --out sprites
implicit-slate data write experiments/sprites.yaml --data.image_size 64 --out sprites64"""


def main(argv: Sequence[str]) -> int:
    arguments, options = parser().parse_with_data_options(argv)
    experiment, out = arguments.experiment, arguments.out.resolve()
    if not experiment.endswith((".yaml", ".yml")):
        raise UserError(f"{experiment}: expected an experiment file (.yaml)")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; it is not overwritten")
    if out.is_mount():
        raise UserError(f"{out}: a disk is mounted there, so no whole folder can be put in its place; name one in it")
    from implicit_slate.evaluation.data import describe_data, load_splits

    data = describe_data(Path(experiment), experiment, options)
    check(data)
    splits = load_splits(data)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            write_folder(splits, folder := Path(temporary) / out.name)
            folder.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    print(f"{out}: " + ", ".join(f"{name} {len(images)}" for name, images in splits._asdict().items()) + " images")
    return 0


def parser() -> ArgumentParser:
    parser = ArgumentParser(
        "implicit-slate data write", __doc__, EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", help="an experiment file whose data to write; "
                        "--data.KEY VALUE changes one setting")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or an empty one")
    return parser


def check(data: dict[str, Any]) -> None:
    """Raise `UserError` if `ImageFolder` could not read the folder: a split is empty, or only some have masks."""
    from data_modules.base import Splits
    from implicit_slate.evaluation.data import describe_split, load_images

    has_masks = {split: "mask" in load_images(data, split)[[0]] for split in Splits._fields}
    without = [split for split in has_masks if not has_masks[split]]
    if any(has_masks.values()) and without:
        raise UserError(f"{describe_split(data, without[0])} has no masks, but others do; a folder needs them for all")


def write_folder(splits: "Splits", folder: Path) -> None:
    """Write the folder, with a progress bar on stderr."""
    from data_modules.progress import meter

    folder.mkdir()
    with meter("write", sum(map(len, splits)), unit="images") as advance:
        for split, images in splits._asdict().items():
            names = [f"{split}_{number:06d}.png" for number in range(len(images))]
            _write_split(images, names, folder, advance)
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def _write_split(images: "Images", names: Sequence[str], folder: Path, advance: Callable[[int], None]) -> None:
    import numpy as np
    from PIL import Image

    from implicit_slate.pictures import to_bytes

    for start in range(0, len(names), AT_A_TIME):
        numbers = list(range(len(names)))[start : start + AT_A_TIME]
        batch = images[numbers]
        pixels = {folder: np.moveaxis(to_bytes(batch["image"]), 1, -1)}
        if "mask" in batch:
            masks = batch["mask"].cpu().numpy()
            for number, mask in zip(numbers, masks):
                least, most = mask.min(), mask.max()
                if least < 0 or most > 255:
                    raise UserError(f"the mask of {names[number]}: expected labels 0 to 255, found {least} to {most}")
            pixels[folder / "masks"] = masks.astype(np.uint8)
        for place, arrays in pixels.items():
            place.mkdir(exist_ok=True)
            for number, array in zip(numbers, arrays):
                Image.fromarray(array).save(place / names[number])
        advance(len(numbers))
