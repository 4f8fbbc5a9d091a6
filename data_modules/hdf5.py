"""Reading HDF5 files, with errors that name the file and what was expected."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from implicit_slate.errors import UserError

_reading = threading.Lock()


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, opened for reading by one thread at a time: closing it closes it for all threads of the process.

    UserError if the file is missing, is not an HDF5 file, or is damaged where it is read.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected an HDF5 file there, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        with _reading, h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # the latter for damaged names of datasets
        raise UserError(f"{path}: expected an HDF5 file that can be read ({' '.join(str(error).split())})") from None


def bytes_dataset(file: h5py.File, path: Path, name: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """The dataset `name`, uint8 of `shape`, in which None is any size. UserError if it is missing or differs."""
    found = file.get(name)
    wanted = f"({', '.join('N' if size is None else str(size) for size in shape)})"
    if not isinstance(found, h5py.Dataset):
        keys = ", ".join(file) or "nothing"
        raise UserError(f"{path}: expected `{name}`, uint8 {wanted}, in it; found {keys}")
    fits = len(found.shape) == len(shape) and all(a in (None, b) for a, b in zip(shape, found.shape))
    if found.dtype != "uint8" or not fits:
        raise UserError(f"{path}: expected `{name}` to be uint8 {wanted}, found {found.dtype} {found.shape}")
    return found
