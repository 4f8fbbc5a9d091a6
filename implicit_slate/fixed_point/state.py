"""States of a refinement: a tensor, or a tuple of tensors, whose first dimension is the batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, ...]
Step = Callable[[Any], Any]
"""A refinement step z -> f(z), the same function at every call; images of a batch must not influence one another."""


class NotFinite(ValueError):
    """The first evaluation of f has NaN or infinity, so there is nothing to iterate."""

    def __init__(self):
        super().__init__("the first evaluation of f is not finite")


def parts(z: State) -> tuple[Tensor, ...]:
    return z if isinstance(z, tuple) else (z,)


def each(function: Callable[..., Tensor], *states: State) -> State:
    """Apply `function` to corresponding tensors of the states; the result has the form of the first state."""
    results = tuple(function(*tensors) for tensors in zip(*map(parts, states), strict=True))
    return _in_form(results, states[0])


def flatten(z: State) -> Tensor:
    """Each image's numbers as one row: (B, D)."""
    rows = [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in parts(z)]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def unflatten(flat: Tensor, like: State) -> State:
    """The inverse of `flatten`: (B, D) -> a state with the form, shapes and types of `like`."""
    pieces = flat.split([tensor.shape[1:].numel() for tensor in parts(like)], dim=1)
    shaped = (piece.reshape(tensor.shape).to(tensor.dtype) for piece, tensor in zip(pieces, parts(like)))
    return _in_form(tuple(shaped), like)


def without_autocast(x: Tensor) -> torch.autocast:
    """A context without autocast on x's device. Steps and losses run in the caller's autocast, but it would round our
    own products of float32 numbers, and those of their backward passes, to 16 bits."""
    return torch.autocast(x.device.type, enabled=False)


def detach(z: State) -> State:
    return each(Tensor.detach, z)


def select(images: Tensor, state: State, other: State) -> State:
    """`state` where `images` (B,) is true, `other` elsewhere."""
    return each(lambda new, old: torch.where(images.view(-1, *[1] * (new.ndim - 1)), new, old), state, other)


@torch.no_grad()
def relative_residual(z_next: State, z: State) -> Tensor:
    """‖f(z) - z‖ / (‖f(z)‖ + tiny) for each image, (B,); infinite if the norm of f(z) overflows."""
    change, size = (flatten(state).norm(dim=1) for state in (each(torch.sub, z_next, z), z_next))
    return torch.where(size.isfinite(), change / (size + torch.finfo(size.dtype).tiny), torch.inf)


def check_start(z0: State) -> None:
    """Raise `ValueError` unless z0 is a floating-point tensor, or a tuple of them with the same batch size."""
    tensors = parts(z0)
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in tensors):
        raise ValueError("z0 must be a tensor, or a tuple of tensors, of floating-point numbers")
    if not all(tensor.ndim for tensor in tensors):
        raise ValueError("z0 has a tensor without dimensions: the first dimension is the batch")
    if len(sizes := {len(tensor) for tensor in tensors}) > 1:
        raise ValueError(f"z0's tensors differ in their batch sizes: {', '.join(map(str, sorted(sizes)))}")


def check_step(z: State, z_next: State) -> None:
    """Raise `ValueError` if the first step z -> f(z) changed the state's form, a shape, a type or a device."""
    if _form(z) != _form(z_next):
        raise ValueError(f"f changed the form of the state: {_form(z)} became {_form(z_next)}")
    for before, after in zip(parts(z), parts(z_next)):
        for what in ("shape", "dtype", "device"):
            old, new = getattr(before, what), getattr(after, what)
            if old != new:
                old, new = (tuple(old), tuple(new)) if what == "shape" else (old, new)
                raise ValueError(f"f changed the state's {what}: {old} became {new}")


def all_finite(z: State) -> Tensor:
    """() whether all numbers of the state are finite."""
    return torch.stack([tensor.isfinite().all() for tensor in parts(z)]).all()


def _in_form(tensors: tuple[Tensor, ...], like: State) -> State:
    """The tensors in the form of `like`: a tensor, a tuple or a named tuple."""
    if not isinstance(like, tuple):
        return tensors[0]
    return type(like)(*tensors) if hasattr(like, "_fields") else tensors


def _form(z: State) -> str:
    if isinstance(z, tuple):
        return f"a tuple of {len(z)}"
    return "a tensor" if isinstance(z, Tensor) else f"a {type(z).__name__}"
