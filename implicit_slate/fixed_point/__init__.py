"""Differentiable fixed points z = f(z) for any refinement step f, and measurements of its Jacobian."""

from implicit_slate.fixed_point.gradients import Gradient, fixed_point, parse_gradient
from implicit_slate.fixed_point.jacobian import (
    Linearization,
    SingularValue,
    dense_jacobian,
    largest_singular_value,
    spectral_norm,
    spectral_radius,
)
from implicit_slate.fixed_point.solvers import Solution, picard

__all__ = [
    "Gradient",
    "Linearization",
    "SingularValue",
    "Solution",
    "dense_jacobian",
    "fixed_point",
    "largest_singular_value",
    "parse_gradient",
    "picard",
    "spectral_norm",
    "spectral_radius",
]
