"""Work on data, divided among threads or processes."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from implicit_slate.processes import end_with_parent

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


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends. An error in the block cancels what still waits."""
    # spawn: a fork of a process that has threads inherits locks that they hold at that moment
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
