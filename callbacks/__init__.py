"""Lightning callbacks that measure, draw and monitor during training."""

from implicit_slate import lazy

HOMES = {
    "Diverged": "divergence",
    "Divergence": "divergence",
    "FixedPointDiagnostics": "fixed_point_diagnostics",
    "GradientNorm": "gradient_norm",
    "Panels": "panels",
    "SlotJacobian": "slot_jacobian",
    "SlotUsage": "slot_usage",
}
__all__ = list(HOMES)
__getattr__ = lazy.attributes(__name__, HOMES)
