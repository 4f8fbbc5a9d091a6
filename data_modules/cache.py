"""A cache of decoded, resized images beside their source, as byte arrays that processes map into memory.

An entry is a folder `<split>-<size>-<what>-v<version>-<files>/` with these files:

- `images.npy`: uint8 (N, 3, size, size).
- `masks.npy`: uint8 (N, size, size), if there are masks.
- `counts.npy`: if the source counts something.
- `entry.json`: which of these arrays exist, with their shapes and types.

The folder's name contains hashes of everything the entry was made from: names, sizes and modification times of the
files, and how they are cropped and resized. So an entry never changes: it is written to a folder of another name, which
is renamed once complete. A damaged entry is made again.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info

from data_modules.base import ArrayImages, Batch
from data_modules.processes import in_threads, num_cores
from data_modules.progress import meter
from data_modules.sources import Source
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically

VERSION = 3  # of decoding and of the format; changing it makes every entry again
CONTENTS = "entry.json"


class CachedImages(ArrayImages):
    """The images of an entry, mapped into memory: processes share them, and a pickle contains only their path.

    Args:
        rows: int (n,), the images of the entry that are used; None: all.
        properties: float32 (N, M, P), of all images of the entry; None: there are none.
    """

    def __init__(self, entry: Path, rows: np.ndarray | None = None, properties: torch.Tensor | None = None):
        self.entry, self.rows = entry, rows
        images, masks, counts = (entry / f"{name}.npy" for name in ("images", "masks", "counts"))
        self.arrays = {"image": _mapped(images)}
        if masks.exists():
            self.arrays["mask"] = _mapped(masks)
        if properties is not None:
            self.arrays["properties"] = properties
        self.counts = np.load(counts) if counts.exists() else None
        """int (N,), for all images of the entry."""

    def select(self, rows: np.ndarray) -> "CachedImages":
        return CachedImages(self.entry, rows)

    def __len__(self) -> int:
        return super().__len__() if self.rows is None else len(self.rows)

    def __getitem__(self, indices: list[int]) -> Batch:
        if self.rows is None:
            return super().__getitem__(indices)
        return super().__getitem__(self.rows[indices].tolist()) | {"index": torch.tensor(indices)}

    def move_to(self, device: torch.device) -> None:
        if self.rows is not None:
            rows, self.rows = torch.from_numpy(self.rows), None
            self.arrays = {name: array[rows] for name, array in self.arrays.items()}
        super().move_to(device)

    def __reduce__(self):
        return CachedImages, (self.entry, self.rows, self.arrays.get("properties"))


def open_cache(source: Source, split: str, root: Path, folder: Path, selection: object) -> CachedImages:
    """The source's decoded images: from the cache in `folder`, or else decoded now, with a progress bar.

    If several processes need them at the same time, one decodes and the others wait.

    Args:
        split: part of the entry's name.
        root: the data set's folder or file. It is identified by its path relative to `folder`, and its files by their
            paths relative to `root`, so a data set can be moved together with its cache.
        selection: which part of the data set is used. An entry replaces older ones of the same data set and selection.

    Raises:
        UserError: a source file is missing or cannot be decoded, `folder` cannot be written, or its disk is full. In
            these cases nothing is left behind.
    """
    root = root.parent if root.is_file() else root
    place = os.path.relpath(root, folder)
    elsewhere = [place] if place != os.pardir else []
    # The 1, and no `place` for a cache in `root`, give the names of version 1, so that its entries are replaced, too.
    made_of = f"{split}-{source.size}-{_hash([1, source, selection, *elsewhere])[:8]}"
    entry = folder / f"{made_of}-v{VERSION}-{_hash(_listing(source, root))[:16]}"
    try:
        if (kept := _kept(entry)) is not None:
            return kept
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            if (kept := _kept(entry)) is not None:
                return kept
            _build(source, split, entry)
            for outdated in folder.glob(f"{made_of}-*"):
                if outdated != entry:
                    shutil.rmtree(outdated)
        return CachedImages(entry)
    except OSError as error:
        raise UserError(
            f"{folder}: decoded images cannot be kept there ({error.strerror or error}); cache_dir names another folder"
        ) from error


def _alone_in(folder: Path) -> AbstractContextManager:
    lock = FileLock(folder / "lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        rank_zero_info(f"{folder}: another process decodes images; waiting for it")
        return lock.acquire()


def _kept(entry: Path) -> CachedImages | None:
    """The images of the entry; None if it is missing or damaged."""
    if not entry.is_dir():
        return None
    try:
        images = CachedImages(entry) if json.loads((entry / CONTENTS).read_text()) == _contents(entry) else None
    except PermissionError:
        raise
    except Exception:  # numpy's readers raise many types of errors
        images = None
    if images is None:
        rank_zero_info(f"{entry}: is damaged; its images are decoded anew")
    return images


def _contents(entry: Path) -> dict[str, list]:
    """The shape and type of each array of an entry, by file name."""
    arrays = {path.name: np.load(path, mmap_mode="r") for path in entry.glob("*.npy")}
    return {name: [[*array.shape], str(array.dtype)] for name, array in arrays.items()}


def _build(source: Source, split: str, entry: Path) -> None:
    for left in entry.parent.glob(".new-*"):  # by processes that were killed: this process holds the lock
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".new-") as new:
        made = Path(new, "entry")
        made.mkdir()
        converted = _write(source, split, made)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        os.rename(made, entry)
    if converted:
        modes = Counter(mode for _, mode in converted)
        counts = ", ".join(f"{count} {mode}" for mode, count in modes.most_common())
        rank_zero_info(f"{converted[0][0]}: not an RGB image; converted, like all such images of {split} ({counts})")


def _write(source: Source, split: str, folder: Path) -> list[tuple[Path, str]]:
    """Writes the arrays. Returns the files whose colours were converted, with their Pillow modes."""
    total = source.count()
    if 3 * source.size**2 * (total or 0) > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    images, masks = _Appended(folder / "images.npy"), _Appended(folder / "masks.npy")
    counts, converted = [], []
    with images, masks, meter(f"decode {split}", total, unit="images") as advance:
        for piece in in_threads(source.decode, source.stored(), num_cores()):
            images.append(piece.images.transpose(0, 3, 1, 2))
            if piece.masks is not None:
                masks.append(piece.masks)
            counts += piece.counts or ()
            converted += piece.converted
            advance(len(piece.images))
    if not images.shape:
        raise UserError(f"{next(iter(source.files()))}: expected images, found none")
    if counts:
        np.save(folder / "counts.npy", counts)
    write_atomically(folder / CONTENTS, json.dumps(_contents(folder)))
    return converted


class _Appended:
    """A .npy file of bytes that grows along its first dimension. It is written, not memory-mapped: on a full disk,
    writing raises OSError, but a mapping crashes the process."""

    def __init__(self, path: Path):
        self.path, self.file, self.shape = path, None, None

    def __enter__(self) -> "_Appended":
        return self

    def append(self, values: np.ndarray) -> None:
        if self.file is None:
            self.file = open(self.path, "wb")  # noqa: SIM115 (closed by __exit__)
            self.shape = (0, *values.shape[1:])
            self._write_header()
        self.shape = (self.shape[0] + len(values), *self.shape[1:])
        self.file.write(np.ascontiguousarray(values, dtype=np.uint8))

    def __exit__(self, kind, *_) -> None:
        if self.file is None:
            return
        with self.file:
            if kind is None:
                self.file.seek(0)
                self._write_header()
                self.file.flush()
                os.fsync(self.file.fileno())  # so that a renamed entry is complete even after a power cut

    def _write_header(self) -> None:
        # numpy's header leaves room for the first dimension to grow
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)


def _listing(source: Source, root: Path) -> Iterator[str]:
    prefix = f"{root}{os.sep}"
    for path in source.files():
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise UserError(f"{path}: expected a file there, found nothing") from None
        except OSError as error:  # such as a link to itself
            raise UserError(f"{path}: expected a file that can be read ({error.strerror})") from None
        yield f"{str(path).removeprefix(prefix)} {status.st_size} {status.st_mtime_ns}"


def _hash(parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode(errors="surrogateescape"))  # file names need not be UTF-8
    return digest.hexdigest()


def _mapped(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # "c": torch warns about read-only arrays
