"""Processes that share out work on data."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Literal


@contextmanager
def process_pool(workers: int, method: Literal["fork", "spawn"]) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends. An error in the block cancels what still waits.

    Args:
        method: "fork" is quick to start, but a process that has threads must not be forked, for a lock that one of
            them holds at that moment is never released in the copy; so all processes are forked here and now.
    """
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        pool.submit(abs, 0).result()
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Lets a worker end when the process that started it is killed, rather than wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
