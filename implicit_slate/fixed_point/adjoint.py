"""The implicit function theorem as an autograd function.

At z* = f(z*), a loss ℓ has the gradient dℓ/dw = u ∂f/∂w, where the row vector u solves the adjoint equation
u = uJ + ∂ℓ/∂z* with J = ∂f/∂z at z* (Bai, Kolter, Koltun 2019, theorem 1). One application of f is recorded; the
backward pass replaces its cotangent ∂ℓ/∂z* by u. The equation is itself a linear fixed point, so the forward solvers
can solve it, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from implicit_slate.fixed_point.jacobian import Linearization, Product, arnoldi, dense_matrix, unit_rows
from implicit_slate.fixed_point.solvers import Adjoint, Solution, anderson, broyden
from implicit_slate.fixed_point.state import relative_residual, without_autocast


class ReplaceCotangent(torch.autograd.Function):
    """Forward: returns z = f(z*) (B, D) unchanged. Backward: replaces its cotangent g by u, the solution of u = uJ + g.

    The backward pass evaluates f at z* once more; this graph is freed when the equation is solved.
    """

    @staticmethod
    def forward(z, z_star, f, method, max_iterations, record):
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, z_star, *ctx.settings = inputs
        ctx.save_for_backward(output, z_star)
        # The backward pass runs outside of the user's autocast region, but f must compute there as it did inside.
        device = z_star.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.autocast = {"device_type": device, "dtype": dtype, "enabled": enabled}

    @staticmethod
    def backward(ctx, g):
        z, z_star = ctx.saved_tensors
        f, *settings = ctx.settings
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            linear = Linearization(f, z_star + (z - z.detach()))  # torch.func tracks z, but forbids requires_grad_()
        with torch.no_grad(), without_autocast(g):
            u = solve_adjoint(linear.vjp, g, *settings)
        return _NotTwice.apply(u, z) if torch.is_grad_enabled() else u, None, None, None, None, None


class _NotTwice(torch.autograd.Function):
    """Forward: returns u unchanged. Backward: raises an error, because a second derivative would need ∂f/∂w along z*,
    and w is hidden inside f."""

    @staticmethod
    def forward(u, z):
        return u.view_as(u)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("an exact gradient cannot be differentiated again; unrolled and truncated ones can")


def solve_adjoint(product: Product, g: Tensor, method: str, max_iterations: int, record: Adjoint) -> Tensor:
    """Solve u = uJ + g for u (B, D) by one of `METHODS`, until ‖uJ + g - u‖ ≤ tol ‖uJ + g‖ or for `max_iterations`;
    writes the residual and the number of products to `record`.

    An image whose J is not finite gets NaN, as in the other modes, so that checks of the gradient find the divergence.
    """
    tol = 1e-10 if g.dtype == torch.float64 else 1e-6
    record.products = 0
    finite = torch.ones(len(g), dtype=torch.bool, device=g.device)

    def counted(u: Tensor) -> Tensor:
        record.products += 1
        result = product(u)
        if record.products == 1:  # later products may overflow because an iterate does; solvers can handle that
            finite.logical_and_(result.isfinite().all(1))
        return torch.where(finite[:, None], result, 0)

    if not g.isfinite().all():  # the loss has diverged; checks of the gradient will find it
        record.residual = g.new_full((len(g),), torch.nan)
        return g
    u, error = METHODS[method](counted, g, max_iterations, tol)
    finite &= error.isfinite()
    # Relative to g, not to u as the tolerance: without a solution, u may grow until any error is small beside it.
    residual = error / g.norm(dim=1).clamp_min(torch.finfo(g.dtype).tiny)
    record.residual = residual.masked_fill(~finite, torch.nan)
    return u.masked_fill(~finite[:, None], torch.nan)


def _by_solver(solver: Callable[..., Solution]):
    def solve(product: Product, g: Tensor, max_iterations: int, tol: float) -> tuple[Tensor, Tensor]:
        # With unlimited memory Broyden's method ends after at most 2 D steps, whether J contracts or not (Gay 1979).
        solution = solver(lambda u: product(u) + g, g, max_iterations=max_iterations, tol=tol, memory=max_iterations)
        return solution.z, solution.residual * solution.z.norm(dim=1)

    return solve


def _gmres(product: Product, g: Tensor, max_iterations: int, tol: float) -> tuple[Tensor, Tensor]:
    """The u in the Krylov space of g with the smallest ‖g - u + uJ‖ (Saad and Schultz 1986), without restarts."""
    start, length = unit_rows(g)
    for basis, hessenberg in arnoldi(product, start, max_iterations):  # noqa: B007
        system = torch.eye(*hessenberg.shape[1:], dtype=hessenberg.dtype) - hessenberg
        target = torch.zeros_like(hessenberg[:, :, :1])
        target[:, 0, 0] = length
        y = torch.linalg.lstsq(system, target, driver="gelsd").solution  # the least-norm one if the system is singular
        u = torch.cat([y, torch.zeros_like(y[:, :1])], dim=1)  # as coefficients of the basis
        error = target - system @ y
        if (relative_residual(u + error, u) <= tol).all():
            break
    return (basis[:, :, :-1] @ y.to(g)).squeeze(2), error.norm(dim=(1, 2)).to(g)


def _dense(product: Product, g: Tensor, max_iterations: int, tol: float) -> tuple[Tensor, Tensor]:
    """Gaussian elimination on I - J, built from D products; the least-norm solution if I - J is singular."""
    matrix = dense_matrix(product, g).nan_to_num(0, 0, 0)  # values that are not finite show in the residual
    precise = torch.promote_types(g.dtype, torch.float32)  # torch has no elimination in 16 bits
    matrix, target = matrix.to(precise), g[:, :, None].to(precise)
    system = (torch.eye(g.shape[1], dtype=precise, device=g.device) - matrix).mT
    u, singular = torch.linalg.solve_ex(system, target)
    if singular.any() or not u.isfinite().all():
        u = torch.linalg.pinv(system) @ target
    u = u.squeeze(2).to(g)
    return u, (product(u) + g - u).norm(dim=1)


METHODS = {"broyden": _by_solver(broyden), "anderson": _by_solver(anderson), "gmres": _gmres, "dense": _dense}
"""Each returns u (B, D) and ‖uJ + g - u‖ (B,), for `broyden` and `anderson` that of the iterate before u."""
