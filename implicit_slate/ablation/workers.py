"""Workers: threads that claim cells and wait for the process of each."""

import collections
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from implicit_slate.ablation.matrix import Cell, Grid
from implicit_slate.ablation.run_folder import CellLock, RunFolder, read_json, try_lock
from implicit_slate.ablation.study import Queue
from implicit_slate.errors import UserError

POLL_SECONDS = 1.0
MOST_KILLS = 3
"""So many times a cell's process may die without a word (out of memory, say) before the cell counts as failed."""

_context = get_context("forkserver")


@dataclass(frozen=True)
class Resources:
    """How this machine is shared out: every worker has its own devices or threads."""

    workers: int
    devices: int
    """Processes of a cell."""
    accelerators: tuple[str, ...]
    """What CUDA_VISIBLE_DEVICES may name; empty on a CPU."""
    cores: int

    @classmethod
    def share_out(cls, workers: int | None, devices: int, accelerators: int) -> "Resources":
        """As many workers as the machine has room for, if it is not said how many."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(accelerators)]
        names = tuple(names[:accelerators])
        if names and devices > len(names):
            raise UserError(f"--devices {devices}: this machine has {len(names)}")
        return cls(workers or max(1, (len(names) or cores) // devices), devices, names, cores)

    @property
    def threads(self) -> int | None:
        """CPU threads of each process; None leaves that to torch, on an accelerator."""
        return None if self.accelerators else max(1, self.cores // (self.workers * self.devices))

    def visible_devices(self, worker: int) -> str | None:
        """CUDA_VISIBLE_DEVICES of a worker; more workers than the machine has room for share devices."""
        if not self.accelerators:
            return None
        first = worker * self.devices
        return ",".join(self.accelerators[i % len(self.accelerators)] for i in range(first, first + self.devices))
