"""SLATE with slots as fixed points: training iterative refinement by implicit differentiation."""

import importlib

__version__ = "0.1.0"
__all__ = ["SLATE", "load_public_checkpoint"]


def __getattr__(name: str):
    """Import the model only when it is asked for: the command's `--help` needs no PyTorch."""
    if name in __all__:
        return getattr(importlib.import_module("implicit_slate.models"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
