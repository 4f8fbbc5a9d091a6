"""SLATE with slots as fixed points: training iterative refinement by implicit differentiation."""

from implicit_slate import lazy

__version__ = "0.1.0"
HOMES = {
    "SLATE": "models",
    "load_pretrained": "models",
    "load_public_checkpoint": "models",
    "load_run": "report.run",
}
__all__ = list(HOMES)
__getattr__ = lazy.attributes(__name__, HOMES)
