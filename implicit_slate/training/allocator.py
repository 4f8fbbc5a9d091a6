"""The memory allocator's settings for training on a CPU."""

import ctypes
import platform

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # their numbers in malloc.h


def keep_freed_memory() -> None:
    """Have this process keep the memory of freed tensors for the next ones; does nothing but on Linux with glibc.

    glibc gives large blocks back to the system at once, and fetches them again page by page: every step of a training
    asks for the same blocks, and at 96×96 pixels a third of its time went into that.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)  # no mapping of its own for a large block
        libc.mallopt(TRIM_THRESHOLD, -1)  # never shrink
