"""CLEVR with masks: a TFRecord or an HDF5 file. A sample is a few scenes, as the data module reads them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_modules.checking.survey import Checked, Survey
from data_modules.clevr import CLEVR, SIZE, Scenes
from implicit_slate.errors import UserError

NUM_OBJECTS = range(3, 11)
CLEVR6 = 6


def survey(folder: Path) -> Survey:
    data = CLEVR(folder)
    source: Scenes = data.sources()["scenes"]
    if not source.path.is_file():
        raise UserError(f"{source.path}: expected a TFRecord or HDF5 file, found nothing")
    made = Survey([], None, partial(check, source), unit="scenes", chunk=1)
    made.samples = _scenes(source, made.problems)
    try:
        made.total = len(source)
    except NotImplementedError:
        pass
    except UserError as error:
        return Survey([], 0, made.check, unit="scenes", problems=[str(error)])
    made.conclude = partial(_count_splits, made, data, source.path)
    return made


def check(source: Scenes, piece: Any) -> Checked:
    where, scene = piece
    try:
        num_objects = int(source.decode(scene).num_objects[0])
    except UserError as error:
        return Checked(where, [str(error)])
    problems = []
    if num_objects not in NUM_OBJECTS:
        problems.append(f"{where}: expected {NUM_OBJECTS[0]} to {NUM_OBJECTS[-1]} objects, found {num_objects}")
    return Checked(where, problems, SIZE, num_objects=num_objects)


def _scenes(source: Scenes, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Scene by scene; a file that is damaged ends there."""
    number = 0
    try:
        for piece in source.pieces():
            for scene in piece:
                yield f"{number}", (f"{source.path}: scene {number}", [scene])
                number += 1
    except UserError as error:
        problems.append(str(error))


def _count_splits(survey: Survey, data: CLEVR, path: Path, results: list[Checked]) -> None:
    numbers = [result.num_objects or 0 for result in results]
    rest = max(0, len(numbers) - data.num_train)
    few = sum(number <= CLEVR6 for number in numbers[: data.num_train])
    survey.counts.append(
        f"{len(numbers)} scenes; training: the first {min(data.num_train, len(numbers))} (CLEVR6: {few} of them)"
    )
    if rest < 2 * data.num_eval:
        survey.problems.append(
            f"{path}: expected at least {data.num_train + 2 * data.num_eval} scenes, {data.num_eval} for the test and "
            f"{data.num_eval} for validation after {data.num_train} of training, found {len(numbers)}"
        )
