"""What a check is made of: a survey lists a folder, and every sample that it found is then decoded, in parallel."""

import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data_modules.progress import track

CHUNK = 16  # samples that a process takes at once


class Checked(NamedTuple):
    """What the decoding of a sample showed."""

    where: str
    """The image's path, and where in that file."""
    problems: list[str]
    """Each one line: which file, what was expected, what was found."""
    size: tuple[int, int] | None = None
    """(width, height) of the image, where it could be read."""
    mode: str = "RGB"
    """Pillow's mode in which the image is stored."""


@dataclass
class Survey:
    """What a folder lists, before anything is decoded."""

    samples: dict[str, Any]
    """What `check` is called with, by the name that the list of good samples gives it."""
    check: Callable[[Any], Checked]
    """Decodes a sample, in another process."""
    unit: str = "images"
    counts: list[str] = field(default_factory=list)
    """Lines about how many there are of what."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the folder as a whole, or with files that belong to no sample."""
    one_size: bool = False
    """Whether all images must be of one size: that of most of them."""


class Findings(NamedTuple):
    """The result of a check."""

    counts: list[str]
    problems: list[str]
    good: list[str]
    """Names of the samples with which nothing is wrong."""


def run(survey: Survey, workers: int) -> Findings:
    """Decodes all samples in `workers` processes, with a progress bar on stderr."""
    checked = dict(zip(survey.samples, _decode(survey, workers), strict=True))
    if survey.one_size:
        _compare_sizes(checked)
    problems = survey.problems + [problem for result in checked.values() for problem in result.problems]
    return Findings(
        [*survey.counts, *_formats(checked)], problems,
        [name for name, result in checked.items() if not result.problems],
    )


def _decode(survey: Survey, workers: int) -> list[Checked]:
    samples = list(survey.samples.values())
    if workers == 1 or len(samples) <= CHUNK:
        return list(track(map(survey.check, samples), "check", len(samples), unit=survey.unit))
    # Forked, as a survey may hold much that a new process would have to be sent; map forks before the bar has a thread.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        try:
            results = pool.map(survey.check, samples, chunksize=CHUNK)
            return list(track(results, "check", len(samples), unit=survey.unit))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _compare_sizes(checked: dict[str, Checked]) -> None:
    sizes = Counter(result.size for result in checked.values() if result.size)
    if len(sizes) < 2:
        return
    (width, height), count = sizes.most_common(1)[0]
    for result in checked.values():
        if result.size and result.size != (width, height):
            result.problems.append(
                f"{result.where}: expected {width} × {height} pixels like {count} others, "
                f"found {result.size[0]} × {result.size[1]}"
            )


def _formats(checked: dict[str, Checked]) -> list[str]:
    """Lines about sizes, and about images that are not stored as RGB."""
    sizes = Counter(result.size for result in checked.values() if result.size)
    lines = [f"{count} of {width} × {height} pixels" for (width, height), count in sizes.most_common(3)]
    if len(sizes) > len(lines):
        lines.append(f"{len(sizes) - len(lines)} other sizes")
    modes = Counter(result.mode for result in checked.values() if result.size)
    return lines + [f"{modes[mode]} stored as {mode}, converted to RGB" for mode in sorted(modes.keys() - {"RGB"})]
