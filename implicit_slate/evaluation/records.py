"""What an evaluation has measured so far, kept on disk so that it can be stopped at any moment."""

import os
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from implicit_slate.errors import UserError
from implicit_slate.evaluation.job import Job, Part, Unit
from implicit_slate.evaluation.measures import COLUMNS
from implicit_slate.files import write_atomically

WIDTH = 2048
"""Of the Inception network's features."""


class Records:
    """Memory-mapped arrays in a folder, a row an image in each pass; one process writes them, and is alone there.

    A context manager. Units that an earlier process of the same job left are found done; those of another job are
    thrown away.

    Raises:
        UserError: the folder cannot be written, has not enough room, or another process writes it.
    """

    def __init__(self, folder: Path, job: Job):
        self.folder, self.job = folder, job
        self._rows = {number: row for row, number in enumerate(job.passes)}
        self._lock = FileLock(folder / "lock", timeout=0)

    def __enter__(self) -> "Records":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._open()
        except Timeout:
            raise UserError(f"{self.folder}: another process is evaluating this") from None
        except OSError as error:
            self._lock.release()
            if not (self.folder / "job").exists():  # nothing was measured yet
                shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError(f"{self.folder}: cannot be written ({error.strerror or error})") from error
        return self

    def __exit__(self, *error) -> None:
        self._lock.release()

    def _open(self) -> None:
        job, fingerprint = self.job, self.folder / "job"
        resumed = fingerprint.exists() and fingerprint.read_text() == job.fingerprint
        if not resumed:
            fingerprint.unlink(missing_ok=True)

        def array(name: str, dtype: type, *shape: int) -> np.memmap:
            file = self.folder / f"{name}.npy"
            values = np.lib.format.open_memmap(file, "r+" if resumed else "w+", dtype, (len(job.passes), *shape))
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would be a crash later
                with open(file, "r+b") as opened:
                    os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
            return values

        chunks = len(job.units) // len(job.passes)
        self._values = array("values", np.float64, job.images, len(COLUMNS))
        self._features = array("features", np.float32, job.images, WIDTH) if job.weights else None
        self._done = array("done", np.bool_, chunks)
        if not resumed:
            write_atomically(fingerprint, job.fingerprint)

    @property
    def missing(self) -> list[Unit]:
        return [unit for unit in self.job.units if not self._done[self._rows[unit.number], unit.chunk]]

    def put(self, unit: Unit, part: Part) -> None:
        """Keep a unit's measurements; it counts as done when they are on disk."""
        row, chunk = self._rows[unit.number], self.job.chunk(unit.chunk)
        self._values[row, chunk.start : chunk.stop] = part.values
        self._values.flush()
        if part.features is not None:
            self._features[row, chunk.start : chunk.stop] = part.features
            self._features.flush()
        self._done[row, unit.chunk] = True
        self._done.flush()

    def values(self, number: int) -> dict[str, np.ndarray]:
        """Of a pass that is done: each column (N,)."""
        return dict(zip(COLUMNS, self._values[self._rows[number]].T))

    def features(self, number: int) -> np.ndarray:
        """Of a pass that is done: float32 (N, 2048)."""
        return self._features[self._rows[number]]

    def remove(self) -> None:
        shutil.rmtree(self.folder)
