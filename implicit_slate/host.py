"""What the CPU may know of values that a GPU computes.

A GPU works through a queue of operations. To read a value (`float(x)`, `if x:`) the CPU waits until the queue is empty,
and then the GPU waits for the CPU. So a training step reads nothing: what must be known is looked at now and then.
"""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # the fixed points use this module, and need no Lightning
    from lightning import Trainer


HAS_TRITON = find_spec("triton") is not None
THREADS_ARE_GIVEN = "OMP_NUM_THREADS" in os.environ
"""By the user: Lightning sets the variable as well, later."""


def is_free_to_read(value: Tensor) -> bool:
    """Whether reading a value costs nothing: it is on the CPU, and not part of a graph that `torch.compile` traces."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()


def is_for_triton(x: Tensor) -> bool:
    """Whether kernels of our own may compute with `x`: on a GPU, where the step is compiled."""
    return HAS_TRITON and x.device.type == "cuda" and torch.compiler.is_compiling()


def is_logged(trainer: "Trainer") -> bool:
    """Whether Lightning logs the step that is being made; with `log_every_n_steps` 0 it logs none."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # the trainer's connector sets it
    return interval > 0 and (trainer.global_step + 1) % interval == 0


def leave_threads(device: torch.device) -> None:
    """Where the device is no CPU, have torch's operations on the CPU take one thread, unless OMP_NUM_THREADS says else.

    Making a batch is all that they do in a step. Several threads wait for one another, and for long if anything else
    runs on the machine: on an H200 with 16 cores a step of 16 ms took up to 63.
    """
    if device.type != "cpu" and not THREADS_ARE_GIVEN:
        torch.set_num_threads(1)
