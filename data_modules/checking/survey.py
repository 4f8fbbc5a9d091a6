"""What a check is made of: a survey lists a folder, and every sample that it found is then decoded, in parallel."""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from data_modules.processes import process_pool
from data_modules.progress import meter


class Checked(NamedTuple):
    """What the decoding of a sample showed."""

    where: str
    """The sample's path, and where in that file."""
    problems: list[str]
    """Each one line: which file, what was expected, what was found."""
    size: tuple[int, int] | None = None
    """(width, height) of the image, where it could be read."""
    mode: str = "RGB"
    """Pillow's mode in which the image is stored."""
    num_objects: int | None = None
    """How many the mask shows, where there is one that could be read."""


@dataclass
class Survey:
    """What a folder lists, before anything is decoded."""

    samples: Iterable[tuple[str, Any]]
    """The name by which the list of good samples calls it, and what `check` is called with. Read only once."""
    total: int | None
    """How many samples; None: only reading tells."""
    check: Callable[[Any], Checked]
    """Decodes a sample, in another process."""
    unit: str = "images"
    chunk: int = 16
    """How many samples a process is given at once."""
    counts: list[str] = field(default_factory=list)
    """Lines about how many there are of what."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the folder as a whole, or with files that belong to no sample."""
    conclude: Callable[[list[Checked]], None] = lambda results: None
    """Called at the end, for problems and counts that show only when all samples are seen."""


class Findings(NamedTuple):
    """The result of a check."""

    counts: list[str]
    problems: list[str]
    good: list[str]
    """Names of the samples with which nothing is wrong."""
    total: int
    """How many samples were decoded."""


def run(survey: Survey, workers: int) -> Findings:
    """Decodes all samples in `workers` processes, with a progress bar on stderr."""
    if survey.total is not None:
        workers = min(workers, math.ceil(survey.total / survey.chunk))
    pool = process_pool(workers, "fork") if workers > 1 else nullcontext()
    names, results = [], []
    with pool as executor, meter("check", survey.total, unit=survey.unit) as advance:
        for name, result in _decode(survey, executor, workers):
            names.append(name)
            results.append(result)
            advance(1)
    survey.conclude(results)
    return Findings(
        [*survey.counts, *_formats(results)],
        [*survey.problems, *(problem for result in results for problem in result.problems)],
        [name for name, result in zip(names, results, strict=True) if not result.problems],
        len(results),
    )


def compare_sizes(results: list[Checked]) -> None:
    """A problem of every image that is not of the size of most."""
    sizes = Counter(result.size for result in results if result.size)
    for (width, height), count in sizes.most_common(1):
        for result in results:
            if result.size and result.size != (width, height):
                result.problems.append(
                    f"{result.where}: expected {width} × {height} pixels like {count} others, "
                    f"found {result.size[0]} × {result.size[1]}"
                )


def _decode(survey: Survey, executor: Executor | None, workers: int) -> Iterator[tuple[str, Checked]]:
    """Names and results in their order. Not more is read ahead than keeps the workers busy: a sample may be large."""
    samples = iter(survey.samples)
    if executor is None:
        yield from ((name, survey.check(value)) for name, value in samples)
        return
    waiting: deque[tuple[list[str], Future]] = deque()
    while chunk := list(islice(samples, survey.chunk)):
        names, values = zip(*chunk, strict=True)
        waiting.append((names, executor.submit(_check_all, survey.check, values)))
        if len(waiting) > 3 * workers:
            names, future = waiting.popleft()
            yield from zip(names, future.result(), strict=True)
    for names, future in waiting:
        yield from zip(names, future.result(), strict=True)


def _check_all(check: Callable[[Any], Checked], values: list) -> list[Checked]:
    return [check(value) for value in values]


def _formats(results: list[Checked]) -> list[str]:
    """Lines about sizes, about images that are not stored as RGB, and about objects."""
    sizes = Counter(result.size for result in results if result.size)
    lines = [f"{count} of {width} × {height} pixels" for (width, height), count in sizes.most_common(3)]
    if len(sizes) > len(lines):
        lines.append(f"{len(sizes) - len(lines)} other sizes")
    modes = Counter(result.mode for result in results if result.size)
    lines += [f"{modes[mode]} stored as {mode}, converted to RGB" for mode in sorted(modes.keys() - {"RGB"})]
    numbers = [result.num_objects for result in results if result.num_objects is not None]
    if numbers:
        lines.append(
            f"objects in a mask: {min(numbers)} to {max(numbers)}, {sum(numbers) / len(numbers):.2f} in the mean"
        )
    return lines
