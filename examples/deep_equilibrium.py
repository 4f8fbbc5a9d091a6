"""A deep-equilibrium layer that classifies points on two spirals.

Its output is the fixed point z = f(z, x) of one small network, found by a root finder (Bai, Kolter, Koltun 2019), so
its depth is the number of evaluations that the solver needs. Training does not force f to be a contraction: the
spectral radius of ∂f/∂z and the number of evaluations show whether it is one. The Jacobian regulariser (Bai, Koltun,
Kolter 2021) keeps both low.

    python examples/deep_equilibrium.py
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from implicit_slate.fixed_point import Solution, fixed_point, jacobian_regularizer, spectral_radius


class DeepEquilibrium(nn.Module):
    """x (B, inputs) -> the fixed point (B, width) of `cell`. `settings` are arguments of `fixed_point`."""

    def __init__(self, inputs: int, width: int, **settings):
        super().__init__()
        self.inject, self.hidden, self.out = (nn.Linear(size, width) for size in (inputs, width, width))
        self.settings = settings

    def cell(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The step z -> f(z, x) at this x."""
        injection = self.inject(x)
        return lambda z: torch.tanh(self.out(torch.tanh(self.hidden(z) + injection)) + injection)

    def forward(self, x: Tensor) -> Solution:
        return fixed_point(self.cell(x), x.new_zeros(len(x), self.out.in_features), **self.settings)


def two_spirals(num_points: int, generator: torch.Generator, turns: float = 1.25) -> tuple[Tensor, Tensor]:
    """Points (N, 2) on two spirals, and the spiral of each point, 0 or 1, (N,)."""
    labels = torch.arange(num_points) % 2
    radius = torch.rand(num_points, generator=generator).sqrt()
    angle = 2 * torch.pi * turns * radius + torch.pi * labels
    x = 3 * radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return x + 0.05 * torch.randn(num_points, 2, generator=generator), labels


def train(x: Tensor, labels: Tensor, regularizer: float, steps: int, **settings) -> tuple[DeepEquilibrium, nn.Linear]:
    """The layer, and the linear classifier on its output, after `steps` steps of Adam."""
    torch.manual_seed(0)
    layer, head = DeepEquilibrium(2, 32, **settings), nn.Linear(32, 2)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=2e-2)
    description = f"training, {settings['solver']}, {settings['gradient']}"
    for _ in track(range(steps), description, transient=True, disable=not sys.stdout.isatty()):
        batch = torch.randint(len(x), (128,))
        z = layer(x[batch]).z
        loss = F.cross_entropy(head(z), labels[batch])
        if regularizer:
            loss = loss + regularizer * jacobian_regularizer(layer.cell(x[batch]), z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer, head


class Measured(NamedTuple):
    """The result of `measure`: means over points."""

    accuracy: float
    radius: float
    """The spectral radius of ∂f/∂z at the fixed point."""
    evaluations: float
    """Evaluations of f until the solver's tolerance is reached, or else the maximum."""
    converged: float


@torch.no_grad()
def measure(layer: DeepEquilibrium, head: nn.Linear, x: Tensor, labels: Tensor) -> Measured:
    solution = layer(x)
    correct = head(solution.z).argmax(1) == labels
    radius = spectral_radius(layer.cell(x), solution.z)
    still_open = solution.trace.cummin(0).values[:-1] > layer.settings["tol"]
    means = (value.float().mean().item() for value in (correct, radius, 1 + still_open.sum(0), solution.converged))
    return Measured(*means)


def main(steps: int = 100) -> None:
    generator = torch.Generator().manual_seed(0)
    (x, labels), test = two_spirals(1000, generator), two_spirals(500, generator)
    table = Table("solver", "gradient", "regulariser", "accuracy", "radius", "f evals", "converged")
    for solver, gradient, regularizer in [
        ("anderson", "implicit", 0.0),
        ("anderson", "phantom(5, 0.5)", 0.0),
        ("anderson", "exact(gmres)", 0.0),
        ("broyden", "implicit", 0.0),
        ("broyden", "implicit", 0.3),
        ("broyden", "exact(gmres)", 0.0),
    ]:
        settings = dict(solver=solver, gradient=gradient, max_iterations=20, tol=1e-2)
        found = measure(*train(x, labels, regularizer, steps, **settings), *test)
        numbers = f"{found.accuracy:.1%}", f"{found.radius:.2f}", f"{found.evaluations:.1f}", f"{found.converged:.1%}"
        table.add_row(solver, gradient, str(regularizer), *numbers)
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
