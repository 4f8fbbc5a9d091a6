"""`dvae.gumbel_softmax` for a GPU, as a custom operator, for `torch.compile` and CUDA graphs."""

import torch
from torch import Tensor
from torch.library import custom_op

from implicit_slate import host


def takes(logits: Tensor) -> bool:
    """Whether `sample` supports these logits: float32, on a GPU, in a compiled step."""
    return logits.dtype == torch.float32 and host.is_for_triton(logits)


def sample(logits: Tensor, tau: float | Tensor) -> Tensor:
    """As `dvae.gumbel_softmax` with newly drawn noise; under autocast, in its precision."""
    tau = torch.as_tensor(tau, dtype=torch.float32, device=logits.device)
    seed = torch.randint(2**63 - 1, (1,), device=logits.device)
    device = logits.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else logits.dtype
    return gumbel_softmax(logits.contiguous(), tau, seed, dtype)


@custom_op("implicit_slate::gumbel_softmax", mutates_args=())
def gumbel_softmax(logits: Tensor, tau: Tensor, seed: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous logits (…, V), tau () and a 64-bit seed (1,) -> a sample of type `dtype` in the shape of `logits`."""
    from implicit_slate.models.gumbel_kernel import gumbel_softmax_kernel

    soft, size = torch.empty_like(logits, dtype=dtype), logits.shape[-1]
    sizes = {"V": size, "QUARTER": 1 << (-(-size // 4) - 1).bit_length(), "FAST": logits.device.type == "cuda"}
    gumbel_softmax_kernel[(logits.numel() // size,)](logits, tau, seed, soft, **sizes, num_warps=4)
    return soft


@gumbel_softmax.register_fake
def _(logits, tau, seed, dtype):
    return torch.empty_like(logits, dtype=dtype)


def _keep(ctx, inputs, output) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(inputs[1], output)


def _backward(ctx, gradient: Tensor):
    tau, soft = ctx.saved_tensors
    soft, gradient = soft.to(ctx.dtype), gradient.to(ctx.dtype)
    mean = (soft * gradient).sum(-1, keepdim=True) / soft.sum(-1, keepdim=True)  # in 16 bits `soft` does not sum to 1
    return soft * (gradient - mean) / tau, None, None, None


gumbel_softmax.register_autograd(_backward, setup_context=_keep)
