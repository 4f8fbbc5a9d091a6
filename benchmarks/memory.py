"""The peak memory of a computation, and the memory that it keeps for its backward pass."""

import gc
import os
from collections.abc import Callable, Iterable
from itertools import accumulate
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.profiler import DeviceType, profile

from benchmarks.common import Result

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences the profiler's messages about its start and end


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes of tensors during `run`, above those allocated before.

    On a CPU, the profiler reports every allocation and release by torch's allocator, including those inside operations.
    Memory that a library such as oneDNN allocates itself is not counted.
    """
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(use_kineto=False, profile_memory=True) as profiler:
        run()
    events = sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [e.nbytes() for e in events if e.name() == "[memory]" and e.device_type() == DeviceType.CPU]
    return max(accumulate(changes, initial=0))


def saved_bytes(forward: Callable[[], Result], besides: Iterable[Tensor] = ()) -> tuple[int, Result]:
    """(bytes that the graph of `forward`'s result keeps for its backward pass, the result).

    A storage is counted once, however many nodes saved it. Storages of the tensors `besides` (parameters, inputs) are
    not counted, because they exist anyway.
    """
    references: list[ReferenceType[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved = tensor.detach()  # lives as long as the node that saves it; with a grad_fn it would never be freed
        references.append(ref(saved))
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved):
        result = forward()
    saved = [tensor.untyped_storage() for tensor in (reference() for reference in references) if tensor is not None]
    storages = {storage.data_ptr(): storage.nbytes() for storage in saved}
    for tensor in besides:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values()), result
