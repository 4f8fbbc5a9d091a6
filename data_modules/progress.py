"""Progress of long operations on data, on stderr: a bar on a terminal, plain lines otherwise."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS_BETWEEN_LINES = 15.0

T = TypeVar("T")


@contextmanager
def meter(what: str, total: int | None, done: int = 0, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Yields advance(n), to be called when n more are done.

    Args:
        total: how many there are; None: unknown.
        done: how many are already done.
        unit: what is counted, such as "images"; "bytes" are shown as sizes, with the speed.
    """
    console = Console(stderr=True)
    counts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
    columns = (TextColumn(what, markup=False), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total, completed=done)
        last = time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            progress.advance(bar, count)
            if not console.is_terminal and (done == total or time.monotonic() - last >= SECONDS_BETWEEN_LINES):
                last = time.monotonic()
                shown = [decimal(n) if unit == "bytes" else f"{n}" for n in (done, total) if n is not None]
                line = f"{what}: {'/'.join(shown)} {'' if unit == 'bytes' else unit}"
                console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)

        yield advance


def track(results: Iterable[T], what: str, total: int, done: int = 0, unit: str = "") -> Iterator[T]:
    """Yields the results and counts them."""
    with meter(what, total, done, unit) as advance:
        for result in results:
            advance(1)
            yield result
