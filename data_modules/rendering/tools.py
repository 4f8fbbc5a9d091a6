"""Maintainers' tools for folders of rendered scenes: `python -m data_modules.rendering.tools TOOL …`.

card  describe a folder or its zip file: a Markdown table, and a picture of the first scenes and masks
pack  pack a folder into a zip file; the same folder gives the same bytes
"""

import io
import json
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from data_modules.image_files import File, open_image, open_mask
from data_modules.rendering.scenes import ATTRIBUTES
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically

SHEET_COLUMNS, SHEET_ROWS, SHEET_SIDE = 12, 3, 128
MASK_COLORS = np.array(
    [[0, 0, 0], [230, 80, 70], [80, 140, 230], [90, 190, 90], [240, 190, 60], [170, 100, 200], [90, 200, 210]], np.uint8
)


def card(source: Path, sheet: Path) -> None:
    """Prints statistics of the folder or zip file `source`, and draws its first scenes and masks to `sheet`."""
    root = source if source.is_dir() else zipfile.Path(source)
    scenes = sorted((root / "scenes").iterdir(), key=lambda path: path.name)
    print(statistics([json.loads(path.read_bytes()) for path in scenes]))
    pictures = [read(root, Path(path.name).stem) for path in scenes[: SHEET_COLUMNS * SHEET_ROWS]]
    write_sheet(sheet, [(image, MASK_COLORS[mask]) for image, mask in pictures])


def statistics(scenes: list[dict]) -> str:
    """A Markdown table: numbers of objects per scene, and of objects with each attribute value."""
    things = [thing for scene in scenes for thing in scene["objects"]]
    rows = {"scenes": f"{len(scenes)}", "objects": f"{len(things)}"}
    rows["objects a scene"] = _counts(len(scene["objects"]) for scene in scenes)
    rows |= {key: _counts(thing[key] for thing in things) for key in ATTRIBUTES}
    return "\n".join(["| what | count |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _counts(values) -> str:
    return ", ".join(f"{value}: {count}" for value, count in sorted(Counter(values).items()))


def pack(folder: Path, file: Path) -> None:
    """Writes images/, masks/, scenes/ and render.json of `folder` into the zip file `file`.

    Entries are sorted and undated. PNG files are stored uncompressed, since they are compressed already.
    """
    paths = sorted(path for kind in ("images", "masks", "scenes") for path in (folder / kind).glob("CLEVR_new_*"))
    if not paths:
        raise UserError(f"{folder}: expected a folder written by `implicit-slate data render`, found no scenes")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in [folder / "render.json", *paths]:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_STORED if path.suffix == ".png" else zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes(), compresslevel=9)
    write_atomically(file, buffer.getvalue())


def read(root: File, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """A scene's image, uint8 (S, S, 3), and mask, uint8 (S, S)."""
    _, image = open_image(root / "images" / f"{stem}.png")
    return np.asarray(image), np.asarray(open_mask(root / "masks" / f"{stem}.png", image.size))


def write_sheet(file: Path, pictures: list[tuple[np.ndarray, ...]]) -> None:
    """Writes a PNG or JPEG file with SHEET_COLUMNS columns; the pictures of a scene, uint8 (S, S, 3), form a column."""
    pictures = pictures + [tuple(map(np.zeros_like, pictures[0]))] * (-len(pictures) % SHEET_COLUMNS)
    columns = [np.concatenate(column) for column in pictures]
    rows = [np.concatenate(columns[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(columns), SHEET_COLUMNS)]
    scale = max(1, SHEET_SIDE // len(pictures[0][0]))
    enlarged = Image.fromarray(np.concatenate(rows).repeat(scale, axis=0).repeat(scale, axis=1))
    buffer = io.BytesIO()
    enlarged.save(buffer, "JPEG" if file.suffix == ".jpg" else "PNG", quality=88)
    write_atomically(file, buffer.getvalue())


if __name__ == "__main__":
    try:
        auto_cli([card, pack], prog="python -m data_modules.rendering.tools", description=__doc__)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
