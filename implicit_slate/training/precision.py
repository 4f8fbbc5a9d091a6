"""The precision with which training is fastest on this machine."""

import torch


def fastest_precision(accelerator: str = "auto") -> str:
    """`bf16-mixed` if the hardware multiplies bfloat16 numbers, otherwise `32-true`; these are Lightning's names.

    GPUs from NVIDIA's Ampere on, and CPUs with AVX512-BF16 or AMX, do so. Other CPUs emulate these products, at half
    the speed of float32.

    Args:
        accelerator: as for the Trainer.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    if accelerator in ("auto", "cpu"):
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in old releases of torch
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
            return "bf16-mixed"
    return "32-true"
