"""Files that are either complete or do not exist, even after a power cut."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from implicit_slate.errors import UserError

UNFINISHED = re.compile(r"\..*\.[^.]+\.(?:[a-z0-9_]{8}|part)")
"""The names `.name.ext.random` of `write_atomically`, and `.name.ext.part` of checkpoints; not other hidden files."""


def write_atomically(path: str | os.PathLike, data: bytes | str, durable: bool = True) -> None:
    """Write `data` to `path` such that readers never see half a file, even if this process is killed at any moment.

    With `durable` the file is on the disk when this returns, so a power cut cannot lose it. Without it, a power cut may
    leave the previous file; this is for progress files that are written every second.

    Raises:
        UserError: the file cannot be written (a full disk, no permission); nothing is left behind.
    """
    with _unfinished(Path(path), data, durable) as temporary:
        os.replace(temporary, path)
        if durable:
            flush(Path(path).parent)


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """As `write_atomically` for several files, of which the last one describes the others.

    All are written before any is replaced, so on a full disk the earlier ones stay. The last one does not exist while
    the others are replaced.
    """
    with ExitStack() as stack:
        written = {path: stack.enter_context(_unfinished(path, data)) for path, data in contents.items()}
        *_, last = written
        last.unlink(missing_ok=True)
        for path, temporary in written.items():
            os.replace(temporary, path)
        flush(last.parent)


@contextmanager
def _unfinished(path: Path, data: bytes | str, durable: bool = True) -> Iterator[Path]:
    """A temporary file beside `path` with the content `data`, which is on the disk if `durable`. On an error it is
    removed; one of the system becomes a `UserError`."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            # text may contain file names, which need not be UTF-8
            file.write(data.encode(errors="surrogateescape") if isinstance(data, str) else data)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        if durable:
            flush(temporary)
        yield temporary
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        raise


def check_writable(folder: Path) -> None:
    """Make `folder`, and raise `UserError` if it is not writable; to be called before long work."""
    probe = folder / ".writable"
    write_atomically(probe, "")
    probe.unlink(missing_ok=True)


def replace_durably(unfinished: Path, path: Path) -> None:
    """Rename a finished file to `path`, such that its content is on the disk before its new name is."""
    flush(unfinished)
    os.replace(unfinished, path)
    flush(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None if there is none: the file is missing, damaged, or truncated by a power cut."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return content if isinstance(content, dict) else None


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file for SQLAlchemy and Optuna, whatever characters its path has."""
    return f"sqlite:///{quote(str(path.absolute()))}"


def sweep(folder: Path, below: bool = True) -> None:
    """Remove unfinished files of killed processes in `folder` and, if `below`, in its subfolders. No other process may
    be writing there."""
    for file in folder.glob("**/.*.*" if below else ".*.*"):
        if UNFINISHED.fullmatch(file.name) and file.is_file():
            file.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
