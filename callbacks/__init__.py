"""Lightning callbacks that look on while SLATE is trained."""

from callbacks.divergence import Diverged, Divergence
from callbacks.gradient_norm import GradientNorm
from callbacks.panels import Panels
from callbacks.slot_jacobian import SlotJacobian

__all__ = ["Diverged", "Divergence", "GradientNorm", "Panels", "SlotJacobian"]
