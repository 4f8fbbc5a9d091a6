"""The discrete VAE's shapes, and the distributions of its samples."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from implicit_slate.models.dvae import DiscreteVAE, ImageNorm, gumbel_noise, gumbel_softmax, sample_tokens

SAMPLES = 40_000


def repeated_logits(vocab_size: int) -> torch.Tensor:
    """One row of logits, repeated SAMPLES times: (1, SAMPLES, V)."""
    generator = torch.Generator().manual_seed(vocab_size)
    return (1.5 * torch.randn(vocab_size, generator=generator)).expand(1, SAMPLES, vocab_size)


def p_value(tokens: torch.Tensor, logits: torch.Tensor) -> float:
    """p-value of the chi-square test that tokens (1, SAMPLES) come from softmax(logits)."""
    counts = torch.bincount(tokens.flatten(), minlength=logits.shape[-1])
    expected = SAMPLES * logits[0, 0].double().softmax(-1)
    rare = expected < 5  # the test requires expected counts of at least five
    counts = torch.cat([counts[~rare], counts[rare].sum(0, keepdim=True)])
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    keep = expected > 0
    return stats.chisquare(counts[keep].numpy(), expected[keep].numpy()).pvalue


@pytest.mark.parametrize("image_size, channels, vocab_size", [(8, 3, 5), (16, 1, 96), (20, 3, 64)])
def test_shapes(image_size, channels, vocab_size):
    dvae, image = DiscreteVAE(vocab_size, channels), torch.rand(2, channels, image_size, image_size)
    logits = dvae.logits(image)
    assert logits.shape == (2, (image_size // 4) ** 2, vocab_size)
    assert dvae.decode(logits.softmax(-1)).shape == image.shape


def test_tokens_run_row_by_row():
    dvae = DiscreteVAE(12)
    flat = dvae.encoder[:1](torch.zeros(1, 3, 16, 16))  # without ImageNorm, which mixes positions
    assert flat.shape[2:] == (4, 4)
    tokens = torch.arange(16).view(1, 16) % 12
    one_hot = F.one_hot(tokens, 12).float()
    image_of_codes = one_hot.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    assert torch.allclose(dvae.decode(one_hot), dvae.decoder(image_of_codes), atol=1e-5)
    image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(dvae.logits(image)[0, 6], dvae.encoder(image)[0, :, 1, 2], atol=1e-5)


def test_decoding_tokens_is_decoding_their_one_hot_codes():
    dvae, tokens = DiscreteVAE(12), torch.randint(12, (3, 16))
    assert torch.allclose(dvae.decode_tokens(tokens), dvae.decode(F.one_hot(tokens, 12).float()), atol=1e-5)


@pytest.mark.parametrize("vocab_size", [7, 96, 1024])  # in blocks of 1, 32 and 64 tokens
def test_sampled_tokens_follow_the_softmax(vocab_size):
    torch.manual_seed(0)
    logits = repeated_logits(vocab_size)
    tokens = sample_tokens(logits)
    assert tokens.shape == (1, SAMPLES) and tokens.dtype == torch.int64
    assert p_value(tokens, logits) > 1e-3
    assert p_value(tokens, 1.1 * logits) < 1e-6  # the test would detect another temperature


def test_tokens_sampled_in_a_training_in_bfloat16_follow_the_softmax():
    torch.manual_seed(0)
    logits = repeated_logits(1024).bfloat16()
    assert p_value(sample_tokens(logits), logits) > 1e-3


def test_sampled_tokens_of_neighbours_are_independent():
    torch.manual_seed(0)
    tokens = sample_tokens(torch.zeros(1, SAMPLES, 4)).view(-1, 2)
    pairs = torch.bincount(4 * tokens[:, 0] + tokens[:, 1], minlength=16)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3


def test_impossible_tokens_are_never_sampled_and_certain_ones_always():
    logits = torch.zeros(4, 500, 128)
    logits[:, :, ::2] = -torch.inf
    assert (sample_tokens(logits) % 2 == 1).all()
    logits[:, :, 77] = 200.0
    assert (sample_tokens(logits) == 77).all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_compiled_norms_are_those_of_torch(dtype, tolerance):
    torch.manual_seed(0)
    norm = ImageNorm(8).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.normal_()
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    up, found = torch.randn(3, 8, 6, 6).to(dtype), []
    x = (1 + 3 * torch.randn(3, 8, 6, 6)).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    for function in (norm, compiled):
        y = function(x)
        found.append([y, *torch.autograd.grad(y, [x, *norm.parameters()], up)])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours.dtype == theirs.dtype and (ours - theirs).norm() <= tolerance * theirs.norm()
    assert compiled(torch.full((1, 8, 6, 6), 1e3, dtype=dtype)).isfinite().all()


def test_gumbel_noise_is_standard():
    torch.manual_seed(0)
    noise = gumbel_noise(torch.empty(SAMPLES, dtype=torch.bfloat16))
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    assert stats.kstest(noise.numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    assert stats.kstest(0.95 * noise.numpy(), stats.gumbel_r.cdf).pvalue < 1e-3


def test_given_noise_is_used_and_left_alone():
    logits, noise = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    before = logits.clone(), noise.clone()
    sample = gumbel_softmax(logits, 0.5, noise=noise)
    assert torch.allclose(sample, ((logits + noise) / 0.5).softmax(-1))
    assert torch.equal(logits, before[0]) and torch.equal(noise, before[1])


def test_straight_through_is_one_hot_with_the_soft_gradient():
    logits, noise, weights = torch.randn(2, 4, 6), torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    gradients, samples = [], []
    for hard in (False, True):
        leaf = logits.clone().requires_grad_()
        samples.append(gumbel_softmax(leaf, 0.5, hard, noise))
        (samples[-1] * weights).sum().backward()
        gradients.append(leaf.grad)
    soft, hard = samples
    assert torch.allclose(hard, F.one_hot(soft.argmax(-1), 6).float(), atol=1e-6)
    assert torch.allclose(*gradients, atol=1e-7) and gradients[0].abs().max() > 1e-3
