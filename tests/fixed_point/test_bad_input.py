"""Invalid steps and states: a `ValueError` says what is wrong, and nothing hangs."""

import pytest
import torch

from implicit_slate.errors import UserError
from implicit_slate.fixed_point import (
    NotFinite,
    anderson,
    broyden,
    dense_jacobian,
    fixed_point,
    jacobian_regularizer,
    picard,
    spectral_norm,
    spectral_radius,
)

Z0 = torch.zeros(2, 3)


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
@pytest.mark.parametrize(
    ("z0", "f", "message"),
    [
        (Z0, lambda z: z[:, :2], r"shape: \(2, 3\) became \(2, 2\)"),
        (Z0, lambda z: z[:1], r"shape: \(2, 3\) became \(1, 3\)"),
        (Z0, lambda z: z.double(), "dtype: torch.float32 became torch.float64"),
        (Z0, lambda z: z.to("meta"), "device: cpu became meta"),
        (Z0, lambda z: (z, z), "form of the state: a tensor became a tuple of 2"),
        (Z0, lambda z: None, "form of the state: a tensor became a NoneType"),
        ((Z0, Z0), lambda z: z[:1], "a tuple of 2 became a tuple of 1"),
    ],
)
def test_a_step_that_changes_its_state(solver, z0, f, message):
    with pytest.raises(ValueError, match=message):
        fixed_point(f, z0, solver=solver)


@pytest.mark.parametrize("measure", [spectral_norm, spectral_radius, dense_jacobian, jacobian_regularizer])
@pytest.mark.parametrize(("columns", "rows"), [(2, 2), (5, 2), (3, 1)])
def test_a_measured_step_that_changes_its_state(measure, columns, rows):
    with pytest.raises(ValueError, match=rf"f changed the state's size: \(2, 3\) became \({rows}, {columns}\)"):
        measure(lambda z: z[:rows] @ torch.ones(3, columns), Z0)


@pytest.mark.parametrize("solve", [picard, anderson, broyden])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_first_evaluation_that_is_not_finite(solve, value):
    with pytest.raises(NotFinite, match="first evaluation"):
        solve(lambda z: z + value, Z0, max_iterations=3, tol=1e-3).checked()


@pytest.mark.parametrize(
    ("z0", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(4, 3)), "batch sizes: 2, 4"),
        (torch.zeros(()), "first dimension is the batch"),
        (torch.zeros(2, 3, dtype=torch.long), "floating-point"),
        ((), "floating-point"),
        ([torch.zeros(2, 3)], "floating-point"),
    ],
)
def test_a_start_that_is_no_state(z0, message):
    with pytest.raises(ValueError, match=message):
        fixed_point(lambda z: z, z0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(gradient="implict"), "did you mean 'implicit'"),
        (dict(gradient="neumann(0)"), "k must be a positive whole number, got 0"),
        (dict(gradient="truncated(-1)"), "got -1"),
        (dict(gradient="truncated(8)"), "only 7 iterations"),
        (dict(gradient="neumann(2.5)"), "got 2.5"),
        (dict(gradient="neumann(many)"), "got many"),
        (dict(gradient="neumann"), r"expected neumann\(k\)"),
        (dict(gradient="implicit(3)"), "expected implicit"),
        (dict(gradient="phantom(5)"), r"expected phantom\(k, tau\)"),
        (dict(gradient="phantom(5, 0)"), r"tau must be in \(0, 1\], got 0"),
        (dict(gradient="phantom(5, 1.5)"), "got 1.5"),
        (dict(gradient="phantom(0, 0.5)"), "got 0"),
        (dict(gradient="exact(broyde)"), "did you mean 'broyden'"),
        (dict(gradient="exact(gmres, 0)"), "at least 1 backward iteration"),
        (dict(gradient="exact(gmres, 3, 4)"), r"expected exact\(method, max_iterations\)"),
        (dict(gradient="exact(gmres"), "unknown gradient mode"),
        (dict(gradient=None), "gradient=None: expected a gradient mode"),
        (dict(solver="anderson", gradient="unrolled"), "picard"),
        (dict(solver="broyden", gradient="truncated(2)"), "picard"),
        (dict(tol=1e-3, gradient="truncated(2)"), "fixed number"),
        (dict(solver="picart"), "did you mean 'picard'"),
        (dict(max_iterations=0), "max_iterations=0"),
        (dict(tol=-1.0), "tol=-1.0"),
        (dict(tol=float("nan")), "tol=nan"),
    ],
)
def test_a_setting_that_is_none_or_does_not_go_with_another(settings, message):
    with pytest.raises(UserError, match=message):
        fixed_point(lambda z: z, Z0, **settings)
