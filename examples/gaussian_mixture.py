"""Learning an embedding through EM: a Gaussian mixture, or soft k-means, as the fixed point of its own step.

EM repeats z <- f(z) on z = (means, variances, weights) until convergence. Here it clusters points that an embedding has
mapped to the plane, and the embedding is trained so that clusters correspond to classes: the loss is computed from the
converged mixture, so its gradient passes through EM. The spectral radius of the Jacobian J of f is the fraction of
information that is missing because the classes are unknown (Dempster, Laird, Rubin 1977). If clusters overlap it is
close to 1: EM is slow, and the exact gradient, a sum over all powers of J, is large.

    python examples/gaussian_mixture.py
"""

import sys
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from implicit_slate.fixed_point import Solver, fixed_point, gradient_cosine, spectral_radius

Mixture = tuple[Tensor, Tensor, Tensor]
"""Means (B, K, D), variances (B, K, D) of the coordinates, weights (B, K), for B data sets at once."""


def responsibilities(x: Tensor, mixture: Mixture) -> Tensor:
    """p(component | point), (B, N, K), for points x (B, N, D)."""
    means, variances, weights = (tensor[:, None] for tensor in mixture)
    log_density = -0.5 * ((x[:, :, None] - means).square() / variances + variances.log()).sum(-1)
    return (weights.log() + log_density).softmax(-1)


def em_step(x: Tensor, mixture: Mixture, prior: float = 1.0) -> Mixture:
    """An E step and an M step (Bishop 2006, §9.2.2).

    Each component gets `prior` pseudo-points at the mean of all points, with variance 1, so that it can neither vanish
    nor collapse.
    """
    r = responsibilities(x, mixture)
    mass = r.sum(1)[:, :, None] + prior
    means = (r.mT @ x + prior * x.mean(1, keepdim=True)) / mass
    variances = ((r[..., None] * (x[:, :, None] - means[:, None]).square()).sum(1) + prior) / mass
    return means, variances, mass.squeeze(2) / mass.sum(1)


def equal_components(means: Tensor, temperature: float | Tensor) -> Mixture:
    """The mixture with equal weights and all variances `temperature`; its E step is that of soft k-means."""
    return means, torch.zeros_like(means) + temperature, torch.ones_like(means[:, :, 0])


def soft_kmeans_step(x: Tensor, means: Tensor, temperature: float | Tensor) -> Tensor:
    """Soft k-means, the special case in which only the means change (MacKay 2003, §20.2): (B, K, D) -> (B, K, D)."""
    return em_step(x, equal_components(means, temperature), prior=0)[0]


def make_data(num_sets: int, generator: torch.Generator, num_points=60, num_classes=3, nuisance=4):
    """Points x (B, N, 2 + nuisance), the i-th of class i % num_classes, and the best embedding (2 + nuisance, 2).

    The classes differ in two coordinates, the others have more variance, and a fixed rotation mixes all of them.
    """
    randn = partial(torch.randn, generator=generator)
    centres = 3 * randn(num_sets, num_classes, 2).repeat(1, num_points // num_classes, 1)
    x = torch.cat([centres + 0.7 * randn(num_sets, num_points, 2), 2 * randn(num_sets, num_points, nuisance)], dim=2)
    rotation = torch.linalg.qr(torch.randn(2 + nuisance, 2 + nuisance, generator=torch.Generator().manual_seed(0)))[0]
    return x @ rotation, rotation.T[:, :2]


def loss_and_accuracy(x: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the responsibilities and the classes, and the fraction of points in their class's cluster."""
    r, num_classes = responsibilities(x, mixture), mixture[0].shape[1]
    labels = torch.arange(x.shape[1]) % num_classes
    own = r[:, torch.arange(x.shape[1]), labels]
    return -own.clamp_min(1e-6).log().mean(), (r.argmax(-1) == labels).float().mean()


def problem(x: Tensor, num_classes: int = 3) -> tuple[partial, Mixture]:
    """EM's step on the points, and its initial mixture, centred on the first point of each class: EM sees no other
    labels."""
    means = x[:, :num_classes]
    return partial(em_step, x), (means, x.var(1, keepdim=True).expand_as(means), torch.ones_like(means[:, :, 0]))


def train(embedding: Tensor, x: Tensor, gradient: str, steps: int, num_iterations: int = 30) -> Tensor:
    """The embedding (2 + nuisance, 2) after `steps` steps of Adam."""
    embedding = embedding.clone().requires_grad_()
    optimizer = torch.optim.Adam([embedding], lr=0.03)
    for _ in track(range(steps), f"training, {gradient}", transient=True, disable=not sys.stdout.isatty()):
        points = x @ embedding
        mixture = fixed_point(*problem(points), max_iterations=num_iterations, gradient=gradient).z
        optimizer.zero_grad()
        loss_and_accuracy(points, mixture)[0].backward()
        torch.nn.utils.clip_grad_norm_([embedding], 0.5)
        optimizer.step()
    return embedding.detach()


def main(steps: int = 60) -> None:
    generator = torch.Generator().manual_seed(3)
    (x, best), (x_test, _) = make_data(24, generator), make_data(100, generator)
    start = torch.randn(x.shape[2], 2, generator=generator) / x.shape[2] ** 0.5

    def test(embedding: Tensor) -> list[str]:
        f, z0 = problem(x_test @ embedding)
        z = fixed_point(f, z0, max_iterations=100).z
        return [f"{loss_and_accuracy(x_test @ embedding, z)[1]:.1%}", f"{spectral_radius(f, z).median():.2f}"]

    # Cosines are measured at the best embedding, where EM converges within 150 steps.
    embedding = best.double().requires_grad_()
    points = x.double() @ embedding
    em, z0 = problem(points)
    kmeans = partial(soft_kmeans_step, points, temperature=1.0)
    cases = [
        (lambda means: loss_and_accuracy(points, equal_components(means, 1.0))[0], kmeans, z0[0]),
        (lambda mixture: loss_and_accuracy(points, mixture)[0], em, z0),
    ]
    table = Table("gradient", "cosine, k-means", "cosine, mixture", "accuracy", "radius")
    table.add_row("(untrained)", "", "", *test(start))
    for gradient in ["unrolled", "implicit", "neumann(3)", "exact(gmres)"]:
        cosines = [gradient_cosine(*case, [embedding], gradient, Solver(max_iterations=150)).cosine for case in cases]
        table.add_row(gradient, *(f"{cosine:.4f}" for cosine in cosines), *test(train(start, x, gradient, steps)))
    table.add_row("(best)", "", "", *test(best))
    Console().print(table)


if __name__ == "__main__":
    main()
