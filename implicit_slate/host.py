"""When the CPU may read values that a GPU computes.

A GPU works through a queue of operations. To read a value (`float(x)`, `if x:`), the CPU waits until the queue is
empty, and then the GPU waits for the CPU. So training steps read no values; needed ones are read from time to time.
"""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # `fixed_point` imports this module, and must not need Lightning
    from lightning import Trainer


HAS_TRITON = find_spec("triton") is not None
THREADS_ARE_GIVEN = "OMP_NUM_THREADS" in os.environ
"""Whether the user has set the number of threads. Read at import, because Lightning sets this variable later."""


def is_free_to_read(value: Tensor) -> bool:
    """Whether reading a value is free: it is on the CPU, and is not being traced by `torch.compile`."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()


def is_for_triton(x: Tensor) -> bool:
    """Whether our Triton kernels are used for `x`: on a GPU, in a compiled step."""
    return HAS_TRITON and x.device.type == "cuda" and torch.compiler.is_compiling()


def is_logged(trainer: "Trainer") -> bool:
    """Whether Lightning logs the current step; with `log_every_n_steps` 0 it logs none."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # the trainer's connector sets it
    return interval > 0 and (trainer.global_step + 1) % interval == 0


def leave_threads(device: torch.device) -> None:
    """When training on a GPU, limit torch's CPU operations to one thread, unless OMP_NUM_THREADS is set.

    These operations only make batches. Several threads would wait for one another, which takes long if other programs
    run on the machine: on an H200 with 16 cores a step of 16 ms took up to 63 ms.
    """
    if device.type != "cpu" and not THREADS_ARE_GIVEN:
        torch.set_num_threads(1)
