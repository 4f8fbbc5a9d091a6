"""Measurements of the Jacobian J = ∂f/∂z of a refinement step, for each image separately.

J is block-diagonal over the batch, so one product with a (B, D) matrix serves all images at once. All products come
from one evaluation of f: Jᵀu by the usual backward pass, Jv by differentiating Jᵀu, which is linear in u, with respect
to u. So f must be differentiable twice, as fused kernels are; not all of them have forward-mode differentiation.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_slate.errors import UserError, nearest
from implicit_slate.fixed_point.state import State, Step, flatten, unflatten, without_autocast

Product = Callable[[Tensor], Tensor]
"""The product of each image's matrix with that image's row (D,): (B, D) -> (B, D)."""


class Linearization:
    """J at z as two products, (B, D) -> (B, D). The `.grad` of f's weights is not changed.

    If z requires gradients, it stays attached to its graph, so products with `create_graph` can be differentiated
    through it.

    Raises:
        ValueError: f(z) has a different size than z.
    """

    def __init__(self, f: Step, z: State):
        with torch.enable_grad():
            z_flat = flatten(z)
            self._z = z_flat if z_flat.requires_grad else z_flat.detach().requires_grad_()
            fz = flatten(f(unflatten(self._z, z)))
            if fz.shape != z_flat.shape:
                raise ValueError(f"f changed the state's size: {tuple(z_flat.shape)} became {tuple(fz.shape)}")
            self._fz = fz if fz.requires_grad else fz + 0 * self._z  # in case f does not depend on z at all

    def vjp(self, u: Tensor, create_graph: bool = False) -> Tensor:
        """uJ, which is Jᵀu."""
        return self._differentiate(self._fz, self._z, u, create_graph)

    def jvp(self, v: Tensor) -> Tensor:
        """Jv."""
        u, transposed_product = self._transposed_product
        return self._differentiate(transposed_product, u, v)

    @cached_property
    def _transposed_product(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = torch.zeros_like(self._fz, requires_grad=True)
            return u, self.vjp(u, create_graph=True)

    @staticmethod
    def _differentiate(y: Tensor, x: Tensor, arriving: Tensor, create_graph: bool = False) -> Tensor:
        with without_autocast(x):
            return torch.autograd.grad(
                y, x, arriving, retain_graph=True, create_graph=create_graph, materialize_grads=True
            )[0]

    def random_start(self) -> Tensor:
        """(B, D) Gaussian numbers, always the same; the global random state is not changed."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self._z.shape, generator=generator, dtype=self._z.dtype).to(self._z.device)


def dense_jacobian(f: Step, z: State) -> Tensor:
    """J itself, (B, D, D), row by row, in D backward passes: for small D and for tests."""
    return dense_matrix(Linearization(f, z).vjp, flatten(z))


def dense_matrix(product: Product, like: Tensor) -> Tensor:
    """The matrices A (B, D, D) of a product u -> uA; `like` (B, D) gives size, type and device."""
    rows = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    return torch.stack([product(row.expand_as(like)) for row in rows], dim=1)


class SingularValue(NamedTuple):
    """The largest singular value of J, for each image."""

    value: Tensor
    """(B,)"""
    vector: Tensor
    """(B, D) the right singular vector: a good start for the next measurement."""
    residual: Tensor
    """(B,) ‖JᵀJv - σ²v‖ / σ²."""
    iterations: int
    """Rounds of one Jv and one Jᵀu each."""


def spectral_norm(f: Step, z: State, **settings: Any) -> Tensor:
    """The largest singular value of J for each image, (B,); for the settings see `largest_singular_value`."""
    return largest_singular_value(f, z, **settings).value


def largest_singular_value(
    f: Step,
    z: State,
    max_iterations: int = 100,
    tol: float = 1e-5,
    v0: Tensor | None = None,
    method: str = "lanczos",
) -> SingularValue:
    """The spectral norm of J for each image, with its singular vector, residual and number of rounds.

    An image whose J is not finite gets NaN as value and residual; other images are not affected.

    Args:
        max_iterations: largest number of rounds of one Jv and one Jᵀu each.
        tol: stop when ‖JᵀJv - σ²v‖ / σ² is at most this for every image. (The change of σ is no usable criterion:
            singular values of slot attention lie so close together that σ changes slowly.)
        v0: (B, D) start; a vector from an earlier measurement of a similar map saves most rounds.
        method: `power` is plain power iteration on JᵀJ; `lanczos` makes the same products, keeps all of them, and takes
            the best vector in their span (Golub and Kahan 1965), which needs about a tenth of the rounds.

    Raises:
        UserError: `max_iterations` below 1, or an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"method={method!r}{nearest(method, METHODS)}")
    _check_rounds(max_iterations)
    linear = Linearization(f, z)
    start = unit_rows(linear.random_start() if v0 is None else v0)[0]
    finite = _all_images(start)
    jvp, vjp = _where_finite(linear.jvp, finite), _where_finite(linear.vjp, finite)
    with without_autocast(start):
        found = METHODS[method](jvp, vjp, start, max_iterations, tol)
    value, residual = (x.masked_fill(~finite, torch.nan) for x in (found.value, found.residual))
    return found._replace(value=value, residual=residual)


def _power_iteration(jvp: Product, vjp: Product, v: Tensor, max_iterations: int, tol: float) -> SingularValue:
    for iteration in range(1, max_iterations + 1):
        product = vjp(jvp(v))
        squared = (v * product).sum(1)  # Rayleigh quotient of JᵀJ
        residual = (product - squared[:, None] * v).norm(dim=1) / squared.clamp_min(torch.finfo(v.dtype).tiny)
        if (residual <= tol).all() or iteration == max_iterations:
            break
        v = unit_rows(product)[0]
    return SingularValue(squared.clamp_min(0).sqrt(), v, residual, iteration)


def _lanczos(jvp: Product, vjp: Product, v: Tensor, max_iterations: int, tol: float) -> SingularValue:
    """Golub-Kahan bidiagonalisation J V = U B, Jᵀ U = V Bᵀ + β v⁺ eᵀ, with full reorthogonalisation.

    With B = P diag(s) Qᵀ, v = V q₁ is a right singular vector of J up to the residual s₁ β |p₁[last]|.
    """
    rounds = min(max_iterations, v.shape[1])
    lefts, rights, bidiagonal = v.new_zeros(*v.shape, 0), v[:, :, None], v.new_zeros(len(v), rounds, rounds)
    for k in range(rounds):
        left, bidiagonal[:, k, k], _ = _new_direction(jvp(rights[:, :, k]), lefts)
        lefts = torch.cat([lefts, left[:, :, None]], dim=2)
        right, beta, _ = _new_direction(vjp(left), rights)
        # For small matrices float64 on the CPU is both faster and more accurate than the GPU's decomposition.
        p, s, qh = torch.linalg.svd(bidiagonal[:, : k + 1, : k + 1].double().cpu())
        value = s[:, 0].to(v)
        residual = beta * p[:, k, 0].abs().to(v) / value.clamp_min(torch.finfo(v.dtype).tiny)
        if (residual <= tol).all() or k + 1 == rounds:
            break
        bidiagonal[:, k, k + 1] = beta
        rights = torch.cat([rights, right[:, :, None]], dim=2)
    return SingularValue(value, (rights @ qh[:, 0, :, None].to(v)).squeeze(2), residual, iterations=k + 1)


METHODS = {"lanczos": _lanczos, "power": _power_iteration}


def arnoldi(product: Product, start: Tensor, max_rounds: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Arnoldi's method on a linear map of rows (B, D), for each image: product(Q[:, :, :k]) = Q H after k rounds.

    Yields the orthonormal basis Q (B, D, k + 1), whose first vector is `start` (of unit length), and the Hessenberg
    matrix H (B, k + 1, k) in float64 on the CPU. It yields after every fifth round and the last one only, because using
    H costs more than a product.
    """
    rounds = min(max_rounds, start.shape[1])
    basis, hessenberg = start[:, :, None], start.new_zeros(len(start), rounds + 1, rounds)
    for k in range(1, rounds + 1):
        direction, hessenberg[:, k, k - 1], hessenberg[:, :k, k - 1] = _new_direction(product(basis[:, :, -1]), basis)
        basis = torch.cat([basis, direction[:, :, None]], dim=2)
        if k % 5 == 0 or k == rounds:
            yield basis, hessenberg[:, : k + 1, :k].double().cpu()


def spectral_radius(f: Step, z: State, max_iterations: int = 300, tol: float = 1e-5) -> Tensor:
    """The largest modulus of J's eigenvalues for each image, (B,), by Arnoldi's method (Saad 2011, §6.2).

    It is right for complex pairs, too; the usual power method on J only if the dominant eigenvalue is real. It stops
    when the residual ‖Jx - θx‖ / ‖θ‖ of the dominant Ritz pair is at most `tol` for every image, or when the Krylov
    space is the whole space and the result exact. An image whose J is not finite gets NaN; others are not affected.

    Raises:
        UserError: `max_iterations` below 1.
    """
    _check_rounds(max_iterations)
    linear = Linearization(f, z)
    start = unit_rows(linear.random_start())[0]
    finite = _all_images(start)
    with without_autocast(start):
        for _, hessenberg in arnoldi(_where_finite(linear.jvp, finite), start, max_iterations):
            values, vectors = torch.linalg.eig(hessenberg[:, :-1])
            radius, dominant = values.abs().max(dim=1)
            last = vectors[torch.arange(len(start)), -1, dominant].abs()
            residual = hessenberg[:, -1, -1] * last / radius.clamp_min(torch.finfo(start.dtype).tiny)
            if (residual <= tol).all():
                break
    return radius.to(start).masked_fill(~finite, torch.nan)


def _all_images(like: Tensor) -> Tensor:
    return torch.ones(len(like), dtype=torch.bool, device=like.device)


def _where_finite(product: Product, finite: Tensor) -> Product:
    """`product`, with zeros for every image whose product was ever not finite; these are set to False in `finite` (B,).

    Otherwise a batched decomposition would raise an error because of one image.
    """

    def of_finite(u: Tensor) -> Tensor:
        result = product(u)
        finite.logical_and_(result.norm(dim=1).isfinite())
        return torch.where(finite[:, None], result, 0)

    return of_finite


def _check_rounds(max_iterations: int) -> None:
    if max_iterations < 1:
        raise UserError(f"max_iterations={max_iterations}: expected at least 1")


def jacobian_regularizer(f: Step, z: State, generator: torch.Generator | None = None) -> Tensor:
    """‖vᵀJ‖² / D with one Gaussian v for each image, (B,): an estimate of ‖J‖²_F / D that can be added to a loss.

    Its mean over the batch is the regulariser of Bai, Koltun, Kolter 2021, §4. It can be differentiated with respect to
    f's weights, and to z if z requires gradients. `generator` must be on the CPU.
    """
    linear, like = Linearization(f, z), flatten(z)
    v = torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)
    return linear.vjp(v, create_graph=True).square().mean(1)


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / ‖x‖ and ‖x‖ (B,) for each row; a zero row stays zero."""
    norm = x.norm(dim=1)
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)[:, None], norm


def _new_direction(x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The part of x (B, D) orthogonal to the basis (B, D, k): its direction (B, D) and length (B,), and the
    coefficients (B, k) of the rest.

    If only rounding errors remain, direction and length are zero: the image's Krylov space is exhausted.
    """
    size, coefficients = x.norm(dim=1), x.new_zeros(len(x), basis.shape[2])
    for _ in range(2):  # once is not enough in float32
        part = basis.mT @ x[:, :, None]
        x, coefficients = x - (basis @ part).squeeze(2), coefficients + part.squeeze(2)
    exhausted = (x.norm(dim=1) <= 10 * torch.finfo(x.dtype).eps * size) & size.isfinite()
    return *unit_rows(torch.where(exhausted[:, None], 0, x)), coefficients
