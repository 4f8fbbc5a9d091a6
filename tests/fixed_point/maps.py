"""Maps whose fixed points and gradients are known from dense linear algebra, in float64."""

from typing import NamedTuple

import torch
from torch import Tensor

EXACT = ["exact(broyden)", "exact(anderson)", "exact(gmres)", "exact(dense)"]
UNTAPED = ["implicit", "neumann(3)", "phantom(5, 0.5)", "bilevel", *EXACT]
"""The modes whose forward solve records no graph."""
ALL_MODES = ["unrolled", "truncated(2)", *UNTAPED]


class LinearMap(NamedTuple):
    """f(z) = A z + b per image, with leaves A (B, D, D) and b (B, D)."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.matrix, z) + self.offset

    @property
    def z0(self) -> Tensor:
        return torch.zeros_like(self.offset.detach())

    def solution(self) -> Tensor:
        return torch.linalg.solve(self.identity - self.matrix, self.offset).detach()

    @property
    def identity(self) -> Tensor:
        return torch.eye(self.offset.shape[1], dtype=torch.float64)


def linear_map(radius: float, batch: int = 4, size: int = 8, seed: int = 0) -> LinearMap:
    """One Gaussian matrix per image, scaled to the spectral radius `radius`."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(batch, size, size, generator=generator, dtype=torch.float64)
    matrix = matrix * (radius / torch.linalg.eigvals(matrix).abs().amax(1))[:, None, None]
    offset = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    return LinearMap(matrix.requires_grad_(), offset.requires_grad_())


def tanh_map(weight: Tensor, inputs: Tensor):
    """f(z) = tanh(W z + x), a contraction for ‖W‖ < 1."""
    return lambda z: torch.tanh(z @ weight.mT + inputs)


def tanh_leaves(norm: float = 0.8, batch: int = 3, size: int = 5) -> tuple[Tensor, Tensor]:
    """W (size, size) with spectral norm `norm`, and x (batch, size)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weight = weight * norm / torch.linalg.matrix_norm(weight, 2)
    inputs = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    return weight.requires_grad_(), inputs.requires_grad_()


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()
