"""3D Shapes: one HDF5 file. A sample is a range of images."""

from pathlib import Path
from typing import NamedTuple

import h5py

from data_modules import shapes3d
from data_modules.checking.survey import Checked, Survey
from data_modules.hdf5 import bytes_dataset, open_hdf5
from implicit_slate.errors import UserError

PIECE = 1000


class Piece(NamedTuple):
    """The images start, …, stop - 1."""

    path: Path
    start: int
    stop: int


def survey(folder: Path) -> Survey:
    path, shape = folder / "3dshapes.h5", shapes3d.SHAPE
    if not path.is_file():
        raise UserError(f"{path}: expected the HDF5 file of 3D Shapes, found nothing")
    counts = [
        "split: " + ", ".join(f"{name} {len(part)}, from image {part.start}" for name, part in shapes3d.SPLITS.items())
    ]
    try:
        with open_hdf5(path) as file:
            bytes_dataset(file, path, "images", shape)
            problems = _check_labels(file, path, shape[0])
    except UserError as error:
        return Survey([], 0, check, unit="ranges of images", counts=counts, problems=[str(error)])
    pieces = [Piece(path, start, min(start + PIECE, shape[0])) for start in range(0, shape[0], PIECE)]
    return Survey(
        ((f"{piece.start}:{piece.stop}", piece) for piece in pieces),
        len(pieces),
        check,
        chunk=1,
        unit="ranges of images",
        counts=[f"{shape[0]} images", *counts],
        problems=problems,
    )


def check(piece: Piece) -> Checked:
    where = f"{piece.path}: images {piece.start} to {piece.stop - 1}"
    try:
        with open_hdf5(piece.path) as file:
            images = file["images"][piece.start : piece.stop]
    except UserError as error:
        return Checked(where, [f"{where}: {str(error).removeprefix(f'{piece.path}: ')}"])
    flat = images.reshape(len(images), -1)
    blank = (flat.min(axis=1) == flat.max(axis=1)).nonzero()[0]  # HDF5 reads what was never written as zeros
    problems = (
        [
            f"{where}: expected pictures, found {len(blank)} without one (image {piece.start + blank[0]}: all "
            f"{flat[blank[0], 0]})"
        ]
        if len(blank)
        else []
    )
    return Checked(where, problems, images.shape[2:0:-1])


def _check_labels(file: h5py.File, path: Path, count: int) -> list[str]:
    labels = file.get("labels")
    if isinstance(labels, h5py.Dataset) and labels.shape == (count, 6):
        return []
    found = getattr(labels, "shape", "nothing")
    return [f"{path}: expected `labels`, ({count}, 6), found {found}"]
