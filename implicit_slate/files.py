"""Files that are either whole or not there, also after a power cut."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from implicit_slate.errors import UserError


def write_atomically(path: str | os.PathLike, data: bytes | str, durable: bool = True) -> None:
    """Write `data` to `path` so that a reader, or a kill at any moment, never meets half a file.

    With `durable` the file is on the disk when this returns, so that a power cut loses nothing of it. Without, a power
    cut may leave the file before; that is for files that are written every second and decide nothing.

    Raises:
        UserError: nothing can be written there (a full disk, a folder without permission); nothing is left behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                # file names in a text need not be UTF-8
                file.write(data.encode(errors="surrogateescape") if isinstance(data, str) else data)
            os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner reads
            if durable:
                replace_durably(Path(temporary), path)
            else:
                os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def check_writable(folder: Path) -> None:
    """`UserError` if nothing can be written in `folder`, which is made: its complaint is due before long work."""
    probe = folder / ".writable"
    write_atomically(probe, "")
    probe.unlink(missing_ok=True)


def replace_durably(unfinished: Path, path: Path) -> None:
    """Give a finished file its name, in this order on the disk: its content, then the name."""
    flush(unfinished)
    os.replace(unfinished, path)
    flush(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None if the file is not there, or is empty or torn as a power cut leaves it."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return content if isinstance(content, dict) else None


def sqlite_url(path: Path) -> str:
    """Of the SQLite database in a file, whatever characters its path has, as SQLAlchemy and Optuna read it."""
    return f"sqlite:///{quote(str(path.absolute()))}"


def sweep(folder: Path, below: bool = True) -> None:
    """Remove unfinished files that a killed process left in `folder` and `below` it. Only its sole user may do this."""
    # `.name.ext.random` of write_atomically; `.lock` and `.claim` have one dot
    for file in folder.glob("**/.*.*" if below else ".*.*"):
        file.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Come back when the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
