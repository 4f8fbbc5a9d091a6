"""Lightning callbacks that measure, draw and watch while a model is trained."""

from callbacks.divergence import Diverged, Divergence
from callbacks.fixed_point_diagnostics import FixedPointDiagnostics
from callbacks.gradient_norm import GradientNorm
from callbacks.panels import Panels
from callbacks.slot_jacobian import SlotJacobian
from callbacks.slot_usage import SlotUsage

__all__ = ["Diverged", "Divergence", "FixedPointDiagnostics", "GradientNorm", "Panels", "SlotJacobian", "SlotUsage"]
