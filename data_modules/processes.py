"""Parallel work on data."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def num_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[[T], R], pieces: Iterable[T], workers: int) -> Iterator[R]:
    """The function's results, in the order of the pieces. Only as many pieces are read ahead as keep `workers` threads
    busy. Threads suffice because Pillow, zlib and numpy release the GIL."""
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
