"""Differentiable fixed points z = f(z) for any refinement step f, and measurements of its Jacobian."""

from implicit_slate.fixed_point.diagnostics import Agreement, Basins, count_basins, gradient_cosine, gradient_cosines
from implicit_slate.fixed_point.gradients import Gradient, fixed_point, parse_gradient
from implicit_slate.fixed_point.jacobian import (
    Linearization,
    SingularValue,
    dense_jacobian,
    jacobian_regularizer,
    largest_singular_value,
    spectral_norm,
    spectral_radius,
)
from implicit_slate.fixed_point.solvers import Adjoint, Solution, Solver, anderson, broyden, picard
from implicit_slate.fixed_point.state import NotFinite
