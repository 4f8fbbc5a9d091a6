"""The implicit function theorem as an autograd function.

At z* = f(z*) a loss ℓ has dℓ/dw = u ∂f/∂w, where the row u solves the adjoint equation u = uJ + ∂ℓ/∂z* with J = ∂f/∂z at
z* (Bai, Kolter, Koltun 2019, theorem 1). One application of f is recorded; on its way back the cotangent ∂ℓ/∂z* is
replaced by u. The equation is linear, itself a fixed point, and has the forward solvers at its service.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from implicit_slate.fixed_point.jacobian import LOOK_EVERY, Linearization, arnoldi, unit_rows
from implicit_slate.fixed_point.solvers import Adjoint, Solution, anderson, broyden
from implicit_slate.fixed_point.state import Step, relative_residual

Product = Callable[[Tensor], Tensor]
"""u -> uJ for each image, (B, D) -> (B, D)."""


def replace_cotangent(z: Tensor, z_star: Tensor, f: Step, method: str, max_iterations: int, record: Adjoint) -> Tensor:
    """z = f(z*), both (B, D), unchanged; backward its cotangent g becomes the u that solves u = uJ + g.

    The backward pass evaluates f at z* once more, keeps no memory between its products, and can be differentiated in
    its turn: u is a fixed point, too, and has its own adjoint equation.
    """
    return _ReplaceCotangent.apply(z, z_star, f, method, max_iterations, record)


class _ReplaceCotangent(torch.autograd.Function):
    @staticmethod
    def forward(z, z_star, f, method, max_iterations, record):
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, z_star, *ctx.settings = inputs
        ctx.save_for_backward(output, z_star)
        # The backward pass runs outside of the user's autocast region, and f must compute as it did inside.
        device = z_star.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }

    @staticmethod
    def backward(ctx, g):
        z, z_star = ctx.saved_tensors
        f, method, max_iterations, record = ctx.settings
        twice = torch.is_grad_enabled()  # create_graph: the result will be differentiated, and z* depends on weights
        with torch.autocast(**ctx.autocast):
            linear = Linearization(f, z_star + (z - z.detach()) if twice else z_star)
            with torch.no_grad():
                u = solve_adjoint(linear.vjp, g, method, max_iterations, record)
            if twice:

                def step(u: Tensor) -> Tensor:
                    return linear.vjp(u, create_graph=True) + g

                u = replace_cotangent(step(u), u, step, method, max_iterations, Adjoint())
        return u, None, None, None, None, None


def solve_adjoint(product: Product, g: Tensor, method: str, max_iterations: int, record: Adjoint) -> Tensor:
    """The u (B, D) of u = uJ + g by one of `METHODS`; in `record`, how that went."""
    tol = 1e-10 if g.dtype == torch.float64 else 1e-6
    record.products = 0

    def counted(u: Tensor) -> Tensor:
        record.products += 1
        return product(u)

    if not g.isfinite().all():  # the loss has diverged, which is for its owner to see
        record.residual = g.new_full((len(g),), torch.nan)
        return g
    u, record.residual = METHODS[method](counted, g, max_iterations, tol)
    return u


def _by_solver(solver: Callable[..., Solution]):
    def solve(product: Product, g: Tensor, max_iterations: int, tol: float) -> tuple[Tensor, Tensor]:
        def step(u: Tensor) -> Tensor:
            return product(u) + g

        # With all its past kept, either ends after at most 2 D steps, whether J contracts or not (Gay 1979).
        solution = solver(step, g, max_iterations=max_iterations, tol=tol, memory=max_iterations)
        return solution.z, solution.residual

    return solve


def _gmres(product: Product, g: Tensor, max_iterations: int, tol: float) -> tuple[Tensor, Tensor]:
    """The u in the Krylov space of g with the smallest ‖g - u + uJ‖ (Saad and Schultz 1986), without restarts."""
    start, length = unit_rows(g)
    rounds = min(max_iterations, g.shape[1])
    u, residual = g, torch.full_like(length, torch.inf)
    for basis, hessenberg in arnoldi(product, start, rounds):
        k = hessenberg.shape[2]
        if k % LOOK_EVERY and k < rounds:
            continue
        system = torch.eye(k + 1, k, dtype=torch.float64) - hessenberg.double().cpu()
        target = torch.zeros(len(g), k + 1, 1, dtype=torch.float64)
        target[:, 0, 0] = length
        y = torch.linalg.lstsq(system, target, driver="gelsd").solution  # of least norm, where it is singular
        error = (target - system @ y).norm(dim=1) / y.norm(dim=1).clamp_min(torch.finfo(g.dtype).tiny)
        open_ = residual > tol  # an image that has converged keeps its answer: what is left of its basis is noise
        u = torch.where(open_[:, None], (basis[:, :, :k] @ y.to(g)).squeeze(2), u)
        residual = torch.where(open_, error.squeeze(1).to(g), residual)
        if (residual <= tol).all():
            break
    return u, residual


def _dense(product: Product, g: Tensor, max_iterations: int, tol: float) -> tuple[Tensor, Tensor]:
    """Gaussian elimination on J itself, which takes D products; of least norm where I - J is singular."""
    rows = torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
    jacobian = torch.stack([product(row.expand_as(g)) for row in rows], dim=1)
    system = (rows - jacobian).mT
    u, singular = torch.linalg.solve_ex(system, g[:, :, None])
    if singular.any() or not u.isfinite().all():
        u = torch.linalg.pinv(system) @ g[:, :, None]
    u = u.squeeze(2)
    return u, relative_residual(product(u) + g, u)


METHODS = {"broyden": _by_solver(broyden), "anderson": _by_solver(anderson), "gmres": _gmres, "dense": _dense}
