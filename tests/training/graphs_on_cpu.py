"""CUDA graphs imitated on a CPU: a graph is a list of operators with their tensors, called again in order."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from implicit_slate.training import cuda_graphs


def tensors(tree):
    if isinstance(tree, (list, tuple)):
        return [x for part in tree for x in tensors(part)]
    return [tree] if isinstance(tree, torch.Tensor) else []


class RecordedGraph:
    """Like `torch.cuda.CUDAGraph`: `replay` writes to the tensors that were made while it recorded."""

    def __init__(self):
        self.calls = []

    def pool(self):
        return None

    @torch.no_grad()
    def replay(self):
        with torch.autocast("cpu", enabled=False):  # operators were recorded with the casts that autocast had added
            for operator, arguments, options, results in self.calls:
                given = {x.untyped_storage().data_ptr() for x in tensors((arguments, *options.values()))}
                for now, memory in zip(tensors(operator(*arguments, **options)), tensors(results), strict=True):
                    if memory.untyped_storage().data_ptr() not in given:  # else a view, or changed in place
                        memory.detach().copy_(now)


class Recording(TorchDispatchMode):
    """Like `torch.cuda.graph`, except that operators also run while they are recorded."""

    def __init__(self, graph, *_, **__):
        super().__init__()
        self.calls = graph.calls

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        results = operator(*arguments, **(options or {}))
        self.calls.append((operator, arguments, options or {}, results))
        return results


def imitate(monkeypatch) -> None:
    """Let `CUDAGraphs` record on a CPU: not compiled, but as if, since compiled dropout and noise have fixed shapes."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(cuda_graphs, "run_apart", lambda run, times: [run() for _ in range(times)])
    fork_rng = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork_rng([]))
    monkeypatch.setattr(torch, "compile", lambda losses, **_: losses)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
