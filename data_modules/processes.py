"""Work on data, divided among the cores."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[[T], R], pieces: Iterable[T], workers: int) -> Iterator[R]:
    """The function's results in the order of the pieces, of which no more are read ahead than keep `workers` threads
    busy. Threads, since Pillow, zlib and numpy let others run while they work."""
    pool, waiting = ThreadPoolExecutor(workers), deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(function, piece))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
