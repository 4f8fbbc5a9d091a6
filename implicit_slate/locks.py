"""Locks of folders: at most one process on all hosts works in a folder.

On one host the kernel's lock decides. It is released when its process dies, so a free lock proves that no process works
there. Not every shared file system propagates such locks to other hosts, so the holder also writes a claim with its
host's name, and touches it every `HEARTBEAT_SECONDS`. Between hosts the claim decides.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from implicit_slate.errors import UserError
from implicit_slate.files import read_json, write_atomically

HEARTBEAT_SECONDS = 20.0
LOOKS = 5
"""Attempts to get the lock: `is_locked` holds it for an instant, which must not look like a working process."""
STALE_SECONDS = 120.0
"""A claim of another host that was not touched for this long belongs to a dead process."""


class FolderLock:
    """Held while this process works in a folder. A context manager; released at the latest when the process ends."""

    def __init__(self, folder: Path, descriptor: int):
        self._claim, self._descriptor = folder / ".claim", descriptor
        self._mine = {"host": socket.gethostname(), "process": os.getpid()}
        write_atomically(self._claim, json.dumps(self._mine))
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exception) -> None:
        self._over.set()
        if read_json(self._claim) == self._mine:
            self._claim.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError, UserError):  # STALE_SECONDS allows for missed heartbeats
                if read_json(self._claim) not in (self._mine, None):
                    os._exit(1)  # two hosts took over a stale claim at the same time; the one that wrote last keeps it
                os.utime(self._claim)


def try_lock(folder: Path) -> FolderLock | None:
    """Lock a folder; None if another process holds its lock. Raises `UserError` if the folder is not writable."""
    try:
        descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    if not _lock_kernel(descriptor):
        os.close(descriptor)
        return None
    os.utime(descriptor)  # to get the time of the file system, because the clocks of hosts may differ
    if _claimed_elsewhere(folder, now=os.fstat(descriptor).st_mtime):
        os.close(descriptor)
        return None
    return FolderLock(folder, descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process works in the folder now. Writes no files."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return _claimed_elsewhere(folder, now=time.time())
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def holder(folder: Path) -> str:
    """The process that works in the folder, for messages: `process 4711 on host`."""
    claim = read_json(folder / ".claim") or {}
    return f"process {claim.get('process', '?')} on {claim.get('host', '?')}"


def _lock_kernel(descriptor: int) -> bool:
    for _ in range(LOOKS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def _claimed_elsewhere(folder: Path, now: float) -> bool:
    """Whether there is a claim of another host that is not stale."""
    claim = read_json(folder / ".claim")
    if claim is None or claim.get("host") == socket.gethostname():
        return False
    try:
        touched = (folder / ".claim").stat().st_mtime
    except FileNotFoundError:
        return False
    return now - touched < STALE_SECONDS
