"""Puts a rendered folder into one zip file: `python -m data_modules.rendering.pack DIR FILE.zip`.

The same folder gives the same bytes: files are sorted and carry no dates. PNGs are stored as they are (they are
compressed already), scene files are deflated.
"""

import io
import sys
import zipfile
from pathlib import Path

from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically


def pack(folder: Path, file: Path) -> None:
    """Writes images/, masks/, scenes/ and render.json of `folder` into the zip `file`."""
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


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
