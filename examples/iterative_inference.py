"""Iterative amortised inference: a VAE whose posterior is the fixed point of a learned refinement.

The parameters (mu, log variance) of q(z|x) start at the prior's and are refined by a network that receives the
gradients of the ELBO with respect to them (Marino, Yue, Mandt 2018). So f itself contains a gradient, which needs care
in three ways: f enables autograd even if the solver has disabled it; it records the inner gradient's graph only if f
will be differentiated; and all layers are smooth, because their second derivatives matter.

    python examples/iterative_inference.py
"""

import math
import sys

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from implicit_slate.fixed_point import Solution, fixed_point

Posterior = tuple[Tensor, Tensor]
"""Mean and log variance of q(z|x), both (B, D)."""


class IterativeVAE(nn.Module):
    """A Bernoulli decoder for images (B, P), and the network that refines the posterior."""

    def __init__(self, num_pixels: int, latent_size: int = 16, hidden: int = 64):
        super().__init__()
        self.latent_size = latent_size
        self.decoder = nn.Sequential(nn.Linear(latent_size, hidden), nn.SiLU(), nn.Linear(hidden, num_pixels))
        self.refine = nn.Sequential(nn.Linear(4 * latent_size, hidden), nn.Tanh(), nn.Linear(hidden, 4 * latent_size))

    def elbo(self, x: Tensor, posterior: Posterior, noise: Tensor) -> Tensor:
        """log p(x|z) - KL(q(z|x) ‖ N(0, 1)), (B,), in nats, with z = mu + sigma · noise (Kingma and Welling 2014)."""
        mu, log_variance = posterior
        logits = self.decoder(mu + (log_variance / 2).exp() * noise)
        log_likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        divergence = 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return log_likelihood - divergence

    def step(self, x: Tensor, noise: Tensor, posterior: Posterior) -> Posterior:
        """One refinement: the network computes new values and gates from the old values and their gradients."""
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            leaves = tuple(p if p.requires_grad else p.detach().requires_grad_() for p in posterior)
            gradients = torch.autograd.grad(self.elbo(x, leaves, noise).sum(), leaves, create_graph=record)
        inputs = torch.cat([*posterior, *(F.softsign(g) for g in gradients)], dim=1)
        new_mu, new_log, gate_mu, gate_log = self.refine(inputs).chunk(4, dim=1)
        mu, log = posterior
        return torch.lerp(mu, new_mu, gate_mu.sigmoid()), torch.lerp(log, new_log, gate_log.sigmoid())

    def infer(self, x: Tensor, noise: Tensor, num_iterations: int, gradient: str = "implicit") -> Solution:
        prior = x.new_zeros(len(x), self.latent_size), x.new_zeros(len(x), self.latent_size)
        return fixed_point(
            lambda posterior: self.step(x, noise, posterior), prior, max_iterations=num_iterations, gradient=gradient
        )


def bars(num_images: int, generator: torch.Generator, side: int = 8) -> Tensor:
    """Images (B, side²) in which each row and each column is on with probability 1/8 (Földiák 1990)."""
    on = torch.rand(num_images, 2, side, generator=generator) < 0.125
    return (on[:, 0, :, None] | on[:, 1, None, :]).flatten(1).float()


def train(x: Tensor, gradient: str, num_iterations: int, steps: int, batch_size: int = 64) -> IterativeVAE:
    torch.manual_seed(0)
    model = IterativeVAE(x.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    description = f"training, {gradient}, {num_iterations} iterations"
    for _ in track(range(steps), description, transient=True, disable=not sys.stdout.isatty()):
        batch = x[torch.randint(len(x), (batch_size,))]
        posterior = model.infer(batch, torch.randn(batch_size, model.latent_size), num_iterations, gradient).z
        # New noise: with the noise of the refinement, the posterior would fit that noise instead of the image.
        loss = -model.elbo(batch, posterior, torch.randn(batch_size, model.latent_size)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def evaluate(model: IterativeVAE, x: Tensor, num_iterations: int) -> tuple[float, float]:
    """Mean ELBO in nats, with noise that the refinement has not seen, and mean residual of the last iteration."""
    generator = torch.Generator().manual_seed(1)
    noise, new_noise = torch.randn(2, len(x), model.latent_size, generator=generator)
    solution = model.infer(x, noise, num_iterations, "unrolled")
    return model.elbo(x, solution.z, new_noise).mean().item(), solution.residual.mean().item()


def main(steps: int = 250) -> None:
    generator = torch.Generator().manual_seed(0)
    x, x_test = bars(5000, generator), bars(1000, generator)
    depths = [1, 5, 10, 50]
    title = "ELBO of test images in nats, after so many iterations"
    table = Table("gradient", "iterations", *map(str, depths), "last residual", title=title)
    for num_iterations in [5, 10]:
        for gradient in ["unrolled", "implicit"]:
            model = train(x, gradient, num_iterations, steps)
            elbos, residuals = zip(*(evaluate(model, x_test, depth) for depth in depths))
            table.add_row(gradient, str(num_iterations), *(f"{elbo:.1f}" for elbo in elbos), f"{residuals[-1]:.2f}")
    entropy = -16 * sum(p * math.log(p) for p in (1 / 8, 7 / 8))
    table.caption = f"The entropy of the data is {entropy:.1f} nats; no ELBO exceeds minus that."
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
