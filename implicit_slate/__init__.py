"""SLATE with slots as fixed points: training iterative refinement by implicit differentiation."""

import importlib

__version__ = "0.1.0"
__all__ = ["SLATE", "load_pretrained", "load_public_checkpoint", "load_run"]

_MODULES = {
    "SLATE": "implicit_slate.models",
    "load_pretrained": "implicit_slate.models",
    "load_public_checkpoint": "implicit_slate.models",
    "load_run": "implicit_slate.report.run",
}


def __getattr__(name: str):
    """Import what is asked for only then: neither the command's `--help` nor `load_run` needs PyTorch."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
