"""The Gumbel-softmax on a GPU: distribution and gradient; without a GPU, its kernel runs in Triton's interpreter."""

import pytest
import torch
from scipy import stats

from implicit_slate.models.dvae import gumbel_softmax
from implicit_slate.models.gumbel_gpu import gumbel_softmax as operation
from tests.models.interpreter import interpret

TAU = 0.7


def draw(vocab_size, device="cpu", dtype=torch.float32, shift=0.0):
    """(sample, logits, gradient of the logits, gradient of the sample); the last is Gaussian with mean `shift`."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(8, 25, vocab_size, device=device)
    logits.requires_grad_()
    seed = torch.randint(2**63 - 1, (1,), device=device)
    up = shift + torch.randn(logits.shape, device=device)
    soft = operation(logits, torch.tensor(TAU, device=device), seed, dtype)
    return soft.detach(), logits.detach(), torch.autograd.grad(soft, logits, up.to(dtype))[0], up


def check_distribution_and_gradient(vocab_size, device="cpu"):
    soft, logits, gradient, up = draw(vocab_size, device)
    assert torch.allclose(soft.sum(-1), torch.ones(soft.shape[:-1], device=device))
    # log soft is (logits + noise) / tau up to a constant; the difference of two Gumbel variables is logistic.
    noise = TAU * soft.double().log() - logits
    differences = (noise[..., 0:-1:2] - noise[..., 1::2]).flatten()
    differences = differences[differences.isfinite()].cpu().numpy()  # some weights are too small for float32
    assert len(differences) > 0.9 * noise.numel() / 2
    assert stats.kstest(differences, stats.logistic.cdf).pvalue > 1e-3
    assert stats.kstest(1.5 * differences, stats.logistic.cdf).pvalue < 1e-3
    assert abs(stats.pearsonr(differences[:-1], differences[1:]).statistic) < 5 * len(differences) ** -0.5
    noise = noise.nan_to_num(neginf=-1e3).float()
    leaf = logits.clone().requires_grad_()
    again = gumbel_softmax(leaf, TAU, noise=noise)
    torch.testing.assert_close(again.detach(), soft, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(again, leaf, up)[0], rtol=1e-3, atol=1e-5)


def check_16_bits(device="cpu"):
    """The sample is rounded to 16 bits; a constant added to its gradient must not affect the logits' gradient."""
    exact, _, expected, _ = draw(64, device, shift=3.0)
    soft, _, gradient, _ = draw(64, device, torch.bfloat16, shift=3.0)
    assert soft.dtype == torch.bfloat16 and gradient.dtype == torch.float32
    assert torch.allclose(soft.float(), exact, rtol=2**-7)
    assert (gradient - expected).norm() < 0.02 * expected.norm()
    assert gradient.sum(-1).norm() < 1e-5 * gradient.norm()


def check_noise(device="cpu"):
    """At both ends of the range of random numbers, and where a series replaces the logarithm."""
    from tests.models.gumbel_probe import noise_of

    below = [0, 1, 2, 127, 2**16, 2**26 - 1, 2**26, 2**26 + 1, 2**28, 2**30, 2**31, 3 * 2**30]
    numbers = torch.tensor([*below, 2**32 - 1025, 2**32 - 257, 2**32 - 128, 2**32 - 1])
    exact = -(-torch.log1p(-(numbers.double() + 0.5) / 2**32)).log()
    error = (noise_of(numbers.tolist(), device) - exact).abs()
    assert error[: len(below)].max() < 1e-4 and error[len(below) : -2].max() < 0.01
    assert error.max() < 0.4  # for the last 128 of 2^32 numbers, which round to 1


def test_the_kernel_in_triton_s_interpreter():
    interpret("tests.models.test_gumbel_gpu")


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [30, 70, 512, 4096])
def test_a_gpu_samples_the_distribution(vocab_size):
    check_distribution_and_gradient(vocab_size, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("check", [check_16_bits, check_noise])
def test_a_gpu_passes_the_same_checks(check):
    check("cuda")


@pytest.mark.gpu
def test_a_gpu_compiles_it_and_draws_other_numbers_every_time():
    torch._dynamo.reset()
    sample = torch.compile(gumbel_softmax, fullgraph=True, mode="reduce-overhead")
    logits = torch.randn(4, 9, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = [sample(logits, torch.full((), TAU, device="cuda")).clone() for _ in range(5)]
    assert all(soft.dtype == torch.bfloat16 for soft in found)
    assert not any(torch.equal(a, b) for a, b in zip(found, found[1:]))


if __name__ == "__main__":
    small = torch.randn(2, 3, 30, requires_grad=True), torch.tensor(TAU), torch.zeros(1, dtype=torch.int64)
    torch.library.opcheck(operation, (*small, torch.float32))
    for vocab_size in (30, 512):
        check_distribution_and_gradient(vocab_size)
    check_16_bits()
    check_noise()
