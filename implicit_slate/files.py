"""Files that are either whole or not there."""

import os
import tempfile
from pathlib import Path

from implicit_slate.errors import UserError


def write_atomically(path: str | os.PathLike, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader, or a kill at any moment, never meets half a file.

    Raises:
        UserError: nothing can be written there (a full disk, a folder without permission); nothing is left behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
            os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner reads
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
