"""A step that contains a gradient: with and without recording, differentiated, and trained."""

import pytest
import torch

from benchmarks.memory import saved_bytes
from examples import iterative_inference as example


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = example.IterativeVAE(9, latent_size=2, hidden=8).double()
    x = example.bars(3, torch.Generator().manual_seed(0), side=3).double()
    return model, x, torch.randn(3, 2, dtype=torch.float64)


def test_bars_are_on_as_often_as_said():
    x = example.bars(20000, torch.Generator().manual_seed(0))
    assert x.unique().tolist() == [0, 1] and x.mean().item() == pytest.approx(1 - (7 / 8) ** 2, abs=0.01)


def test_elbo_is_that_of_the_distributions(small):
    model, x, noise = small
    mu, log_variance = torch.randn(2, 3, 2, dtype=torch.float64)
    q = torch.distributions.Normal(mu, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    likelihood = torch.distributions.Bernoulli(logits=model.decoder(q.loc + q.scale * noise))
    expected = likelihood.log_prob(x).sum(1) - torch.distributions.kl_divergence(q, prior).sum(1)
    assert torch.allclose(model.elbo(x, (mu, log_variance), noise), expected)


def test_a_step_is_the_same_whether_it_is_recorded_or_not(small):
    model, x, noise = small
    posterior = tuple(torch.randn(2, 3, 2, dtype=torch.float64))
    with torch.no_grad():
        unrecorded = model.step(x, noise, posterior)
    recorded = model.step(x, noise, posterior)
    assert all(torch.equal(a, b) for a, b in zip(unrecorded, recorded))
    assert not any(part.requires_grad for part in unrecorded) and all(part.requires_grad for part in recorded)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_derivative_of_a_step_is_that_of_differences(small):
    model, x, noise = small
    posterior = tuple(torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda *z: model.step(x, noise, z), posterior)


@pytest.mark.parametrize("part", ["decoder", "refine"])
def test_exact_gradient_is_the_unrolled_one_where_the_refinement_has_converged(small, part):
    model, x, noise = small
    parameters = list(getattr(model, part).parameters())

    def gradient(mode):
        solution = model.infer(x, noise, 200, mode)
        assert solution.residual.max() < 1e-10
        found = torch.autograd.grad(model.elbo(x, solution.z, -noise).mean(), parameters)
        return torch.cat([g.flatten() for g in found])

    unrolled = gradient("unrolled")
    assert torch.allclose(gradient("exact(gmres)"), unrolled, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(gradient("implicit"), unrolled, rtol=1e-3)  # the one-step gradient differs


def test_the_graph_that_implicit_leaves_does_not_grow_with_the_iterations(small):
    model, x, noise = small
    saved = {
        (gradient, n): saved_bytes(lambda gradient=gradient, n=n: model.infer(x, noise, n, gradient))[0]
        for gradient in ("implicit", "unrolled")
        for n in (2, 8)
    }
    assert saved["implicit", 8] == saved["implicit", 2] < saved["unrolled", 2] < saved["unrolled", 8] / 2


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_training_raises_the_elbo_and_refinement_helps(gradient):
    generator = torch.Generator().manual_seed(0)
    x, x_test = example.bars(1000, generator), example.bars(200, generator)
    before, _ = example.evaluate(example.train(x, gradient, 5, steps=0), x_test, 5)
    trained = example.train(x, gradient, 5, steps=100)
    after, _ = example.evaluate(trained, x_test, 5)
    assert before == pytest.approx(-64 * 0.7, abs=4)  # as for a fair coin per pixel
    assert after > -36
    assert after > example.evaluate(trained, x_test, 1)[0] + 1
