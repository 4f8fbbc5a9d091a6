"""States of a refinement: one tensor, or a tuple of tensors, whose first dimension is the batch."""

from collections.abc import Callable

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, ...]
Step = Callable[[State], State]
"""One refinement step z -> f(z); images of a batch must not see one another."""


def parts(z: State) -> tuple[Tensor, ...]:
    return z if isinstance(z, tuple) else (z,)


def each(function: Callable[..., Tensor], *states: State) -> State:
    """`function` applied to corresponding tensors of the states, in the form of the first state."""
    results = tuple(function(*tensors) for tensors in zip(*map(parts, states), strict=True))
    return results if isinstance(states[0], tuple) else results[0]


def flatten(z: State) -> Tensor:
    """All numbers of one image in a row: (B, D)."""
    return torch.cat([tensor.flatten(1) for tensor in parts(z)], dim=1)


def unflatten(flat: Tensor, like: State) -> State:
    """The inverse of `flatten`: (B, D) in the form of `like`."""
    pieces = flat.split([tensor[0].numel() for tensor in parts(like)], dim=1)
    in_form = pieces if isinstance(like, tuple) else pieces[0]
    return each(lambda piece, tensor: piece.reshape(tensor.shape), in_form, like)


def detach(z: State) -> State:
    return each(Tensor.detach, z)


@torch.no_grad()
def relative_residual(z_next: State, z: State) -> Tensor:
    """‖f(z) - z‖ / (‖f(z)‖ + tiny) for each image: (B,)."""
    tiny = torch.finfo(parts(z)[0].dtype).tiny
    return flatten(each(torch.sub, z_next, z)).norm(dim=1) / (flatten(z_next).norm(dim=1) + tiny)
