"""Figures for a data set's card: `python -m data_modules.rendering.card DIR SHEET.jpg` prints a Markdown table of what
is in a rendered folder, or in a zip file of one, and draws a contact sheet of its first scenes and their masks.
"""

import io
import json
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from data_modules.image_files import open_image, open_mask
from data_modules.rendering.compare import contact_sheet
from data_modules.rendering.scenes import MAX_OBJECTS
from implicit_slate.files import write_atomically

COLUMNS, ROWS = 12, 3
MASK_COLORS = np.array(
    [[0, 0, 0], [230, 80, 70], [80, 140, 230], [90, 190, 90], [240, 190, 60], [170, 100, 200], [90, 200, 210]], np.uint8
)
assert len(MASK_COLORS) == MAX_OBJECTS + 1


def statistics(scenes: list[dict]) -> str:
    """A Markdown table of how many objects of each kind there are, and of how many a scene has."""
    things = [thing for scene in scenes for thing in scene["objects"]]
    rows = [("scenes", f"{len(scenes)}"), ("objects", f"{len(things)}")]
    rows.append(("objects a scene", _counts(Counter(len(scene["objects"]) for scene in scenes))))
    rows += [(key, _counts(Counter(thing[key] for thing in things))) for key in ("shape", "size", "material", "color")]
    return "\n".join(["| what | count |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _counts(counter: Counter) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items()))


def main(source: Path, sheet: Path) -> None:
    root = source if source.is_dir() else zipfile.Path(source)
    names = sorted(Path(path.name).stem for path in (root / "scenes").iterdir())
    print(statistics([json.loads((root / "scenes" / f"{name}.json").read_bytes()) for name in names]))
    rows = []
    for start in range(0, COLUMNS * ROWS, COLUMNS):
        images, masks = [], []
        for name in names[start : start + COLUMNS]:
            image = open_image(io.BytesIO((root / "images" / f"{name}.png").read_bytes()), name)
            mask = open_mask(io.BytesIO((root / "masks" / f"{name}.png").read_bytes()), name, image.size)
            images.append(np.asarray(image))
            masks.append(MASK_COLORS[np.asarray(mask)])
        rows += [images, masks]
    write_atomically(sheet, contact_sheet(rows, 128 // len(rows[0][0]), "JPEG" if sheet.suffix == ".jpg" else "PNG"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
