"""Measurements of the Jacobian J = ∂f/∂z of a refinement step, for each image by itself.

J is block-diagonal over the batch, so one product with a (B, D) matrix serves all images at once. Products come from
one evaluation of f: Jᵀu by the usual backward pass, Jv by differentiating Jᵀu, which is linear in u, with respect to u.
That needs only that f can be differentiated twice, on any device; forward-mode AD is not there for every fused kernel.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from implicit_slate.fixed_point.state import State, Step, flatten, unflatten

LOOK_EVERY = 5
"""Rounds of Arnoldi's method between two looks at the small matrix, which cost more than a product each."""


class Linearization:
    """J at z as two products, (B, D) -> (B, D). Gradients of f's weights are not touched.

    A z that requires gradients stays attached to its graph, so that products with `create_graph` can be differentiated
    through it.
    """

    def __init__(self, f: Step, z: State):
        with torch.enable_grad():
            z_flat = flatten(z)
            self._z = z_flat if z_flat.requires_grad else z_flat.detach().requires_grad_()
            self._fz = flatten(f(unflatten(self._z, z)))

    def vjp(self, u: Tensor, create_graph: bool = False) -> Tensor:
        """uJ, which is Jᵀu."""
        if not self._fz.requires_grad:  # f does not depend on z at all
            return torch.zeros_like(self._z) + 0 * u
        return torch.autograd.grad(
            self._fz, self._z, u, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )[0]

    def jvp(self, v: Tensor) -> Tensor:
        """Jv."""
        u, transposed_product = self._transposed_product
        return torch.autograd.grad(transposed_product, u, v, retain_graph=True, materialize_grads=True)[0]

    @cached_property
    def _transposed_product(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = torch.zeros_like(self._fz, requires_grad=True)
            return u, self.vjp(u, create_graph=True)

    def random_start(self) -> Tensor:
        """(B, D) Gaussian numbers that are always the same and leave the global generator alone."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self._z.shape, generator=generator, dtype=self._z.dtype).to(self._z.device)


def dense_jacobian(f: Step, z: State) -> Tensor:
    """J itself, (B, D, D), row by row: D backward passes. For small D and for tests."""
    linear = Linearization(f, z)
    rows = torch.eye(flatten(z).shape[1], dtype=flatten(z).dtype, device=flatten(z).device)
    batch = flatten(z).shape[0]
    return torch.stack([linear.vjp(row.expand(batch, -1)) for row in rows], dim=1)


class SingularValue(NamedTuple):
    """The largest singular value of J, for each image."""

    value: Tensor
    """(B,)"""
    vector: Tensor
    """(B, D) its right singular vector: a good start for the next measurement."""
    residual: Tensor
    """(B,) ‖JᵀJv - σ²v‖ / σ²."""
    iterations: int
    """Rounds, each one Jv and one Jᵀu."""


def spectral_norm(
    f: Step,
    z: State,
    max_iterations: int = 100,
    tol: float = 1e-5,
    v0: Tensor | None = None,
    method: str = "lanczos",
) -> Tensor:
    """The largest singular value of J for each image: (B,).

    Args:
        max_iterations: at most so many rounds of one Jv and one Jᵀu.
        tol: stop when ‖JᵀJv - σ²v‖ / σ² is below this for every image. (σ's own change says little: singular values
            of slot attention lie so close together that σ creeps.)
        v0: (B, D) start; a vector from an earlier measurement of a similar map saves most rounds.
        method: `power` is plain power iteration on JᵀJ; `lanczos` makes the same products, keeps all of them, and takes
            the best vector in their span (Golub and Kahan 1965), some ten times fewer.
    """
    return largest_singular_value(f, z, max_iterations, tol, v0, method).value


def largest_singular_value(
    f: Step,
    z: State,
    max_iterations: int = 100,
    tol: float = 1e-5,
    v0: Tensor | None = None,
    method: str = "lanczos",
) -> SingularValue:
    """As `spectral_norm`, with the singular vector, the residual and the rounds it took."""
    linear = Linearization(f, z)
    start = unit_rows(linear.random_start() if v0 is None else v0)[0]
    return {"lanczos": _lanczos, "power": _power_iteration}[method](linear, start, max_iterations, tol)


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / ‖x‖ and ‖x‖ (B,) for each row; a zero row stays zero."""
    norm = x.norm(dim=1)
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)[:, None], norm


def _power_iteration(linear: Linearization, v: Tensor, max_iterations: int, tol: float) -> SingularValue:
    for iteration in range(1, max_iterations + 1):
        product = linear.vjp(linear.jvp(v))
        squared = (v * product).sum(1)  # Rayleigh quotient of JᵀJ
        residual = (product - squared[:, None] * v).norm(dim=1) / squared.clamp_min(torch.finfo(v.dtype).tiny)
        if (residual <= tol).all() or iteration == max_iterations:
            break
        v = unit_rows(product)[0]
    return SingularValue(squared.clamp_min(0).sqrt(), v, residual, iteration)


def _lanczos(linear: Linearization, v: Tensor, max_iterations: int, tol: float) -> SingularValue:
    """Golub-Kahan bidiagonalisation J V = U B, Jᵀ U = V Bᵀ + β v⁺ eᵀ, with full reorthogonalisation.

    With B = P diag(s) Qᵀ, v = V q₁ is a right singular vector up to the residual s₁ β |p₁[last]|.
    """
    batch, dimension = v.shape
    rounds = min(max_iterations, dimension)
    lefts, rights, bidiagonal = v.new_zeros(batch, dimension, 0), v[:, :, None], v.new_zeros(batch, rounds, rounds)
    result = None
    for k in range(rounds):
        left, alpha = unit_rows(_orthogonalize(linear.jvp(rights[:, :, k]), lefts))
        lefts = torch.cat([lefts, left[:, :, None]], dim=2)
        bidiagonal[:, k, k] = alpha
        right, beta = unit_rows(_orthogonalize(linear.vjp(left), rights))

        # Small matrices: float64 on the CPU is both quicker and safer than the device's own decomposition.
        p, s, qh = torch.linalg.svd(bidiagonal[:, : k + 1, : k + 1].double().cpu())
        value = s[:, 0].to(v)
        residual = beta * p[:, k, 0].abs().to(v) / value.clamp_min(torch.finfo(v.dtype).tiny)
        vector = (rights @ qh[:, 0, :, None].to(v)).squeeze(2)
        if result is None:
            result = value, vector, residual
        else:  # an image that has converged keeps its answer: its Krylov space may be exhausted and hold noise
            open_ = result[2] > tol
            result = (
                torch.where(open_, value, result[0]),
                torch.where(open_[:, None], vector, result[1]),
                torch.where(open_, residual, result[2]),
            )
        if (result[2] <= tol).all() or k + 1 == rounds:
            break
        bidiagonal[:, k, k + 1] = beta
        rights = torch.cat([rights, right[:, :, None]], dim=2)
    return SingularValue(*result, iterations=k + 1)


def _orthogonalize(x: Tensor, basis: Tensor) -> Tensor:
    """x (B, D) less its part in the span of the basis (B, D, k); twice, because once is not enough in float32."""
    for _ in range(2):
        x = x - (basis @ (basis.mT @ x[:, :, None])).squeeze(2)
    return x


def arnoldi(product: Callable[[Tensor], Tensor], start: Tensor, rounds: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Arnoldi's method on a linear map of rows (B, D), for each image: product(Q[:, :, :k]) = Q H after k rounds.

    Yields after each round the basis Q (B, D, k + 1), orthonormal from a `start` of unit length, and the upper
    Hessenberg matrix H (B, k + 1, k).
    """
    basis, hessenberg = start[:, :, None], start.new_zeros(len(start), rounds + 1, rounds)
    for k in range(rounds):
        image = product(basis[:, :, k])
        for _ in range(2):  # once is not enough in float32
            coefficients = basis.mT @ image[:, :, None]
            hessenberg[:, : k + 1, k] += coefficients.squeeze(2)
            image = image - (basis @ coefficients).squeeze(2)
        direction, hessenberg[:, k + 1, k] = unit_rows(image)
        basis = torch.cat([basis, direction[:, :, None]], dim=2)
        yield basis, hessenberg[:, : k + 2, : k + 1]


def spectral_radius(f: Step, z: State, max_iterations: int = 300, tol: float = 1e-5) -> Tensor:
    """The largest modulus of J's eigenvalues for each image, (B,), by Arnoldi's method (Saad 2011, §6.2).

    The usual power method on J sees only a real dominant eigenvalue; this one is right for complex pairs as well. It
    stops when the dominant Ritz pair's residual ‖Jx - θx‖ / |θ| is below `tol` for every image, or when the Krylov
    space is the whole space, where it is exact.
    """
    linear = Linearization(f, z)
    start = unit_rows(linear.random_start())[0]
    batch, rounds = len(start), min(max_iterations, start.shape[1])
    radius = residual = torch.full((batch,), torch.inf, dtype=torch.float64)
    for _, hessenberg in arnoldi(linear.jvp, start, rounds):
        k = hessenberg.shape[2]
        if k % LOOK_EVERY and k < rounds:
            continue
        hessenberg = hessenberg.double().cpu()
        values, vectors = torch.linalg.eig(hessenberg[:, :k])
        largest, dominant = values.abs().max(dim=1)
        last = vectors[torch.arange(batch), k - 1, dominant].abs()
        open_ = residual > tol  # as in Lanczos: a converged image keeps its answer
        radius = torch.where(open_, largest, radius)
        relative = hessenberg[:, k, k - 1] * last / largest.clamp_min(torch.finfo(start.dtype).tiny)
        residual = torch.where(open_, relative, residual)
        if (residual <= tol).all():
            break
    return radius.to(start)


def jacobian_regularizer(f: Step, z: State, generator: torch.Generator | None = None) -> Tensor:
    """‖vᵀJ‖² / D with one Gaussian v for each image, (B,): an estimate of ‖J‖²_F / D to be added to a loss.

    Its mean over the batch is the regulariser of Bai, Koltun, Kolter 2021, §4. It can be differentiated with respect to
    f's weights, and to z where z requires gradients. A generator lives on the CPU.
    """
    linear = Linearization(f, z)
    like = flatten(z)
    v = torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)
    with torch.enable_grad():
        return linear.vjp(v, create_graph=True).square().mean(1)
