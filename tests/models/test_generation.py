"""Generation from slots: equal with and without the cache, and samples from the requested distribution."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from implicit_slate import SLATE
from implicit_slate.errors import UserError
from implicit_slate.models.generation import BLOCK, choose
from tests.tiny import SLATE_SIZES

TINY = SLATE_SIZES | dict(slot_size=24, slot_mlp_size=20, num_blocks=2, dropout=0.1)
CONFIGURATIONS = {  # differences from TINY
    "tiny": {},
    "one wide block": dict(d_model=40, num_heads=5, num_blocks=1),
    "several slot heads": dict(num_slot_heads=4, num_slots=5),
    "81 tokens, more than a block of the cache": dict(image_size=36, vocab_size=33, num_blocks=3),
}


@pytest.fixture(params=CONFIGURATIONS)
def model(request):
    torch.manual_seed(0)
    return SLATE(**TINY | CONFIGURATIONS[request.param]).eval()


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    """The number of CPU threads, among which generation divides its products."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def from_scratch(model: SLATE, slots: torch.Tensor) -> torch.Tensor:
    tokens = torch.zeros(len(slots), model.num_tokens, dtype=torch.long)
    with torch.no_grad():
        for i in range(model.num_tokens):
            tokens[:, i] = model.decode(tokens, slots)[:, i].argmax(-1)
    return tokens


def step_by_step(model: SLATE, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Logits (B, N, V) of given tokens, computed with the cache."""
    decoding = model.decoding(slots)
    before = torch.nn.functional.pad(tokens + 1, (1, 0))[:, :-1]
    with torch.no_grad():
        return torch.stack([decoding.step(index) for index in before.unbind(1)], 1)


@pytest.mark.usefixtures("threads")
def test_generation_through_the_cache_is_generation_from_scratch_of_every_image_alone(model):
    slots = model.sample_slots(3).detach()
    tokens = from_scratch(model, slots)
    assert torch.equal(model.generate(slots), tokens)
    assert torch.equal(torch.cat([model.generate(slots[i : i + 1]) for i in range(3)]), tokens)
    torch.testing.assert_close(step_by_step(model, tokens, slots), model.decode(tokens, slots), atol=1e-4, rtol=0)


def test_generated_tokens_can_be_trained_on(model):
    model.predict(model.generate(model.sample_slots(2))).cross_entropy.backward()
    assert model.dictionary.weight.grad.any()


@pytest.mark.gpu
def test_generation_on_a_gpu_is_that_on_a_cpu(model):
    slots = model.sample_slots(3).detach()
    tokens = from_scratch(model, slots)
    logits = step_by_step(model.cuda(), tokens.cuda(), slots.cuda()).cpu()
    torch.testing.assert_close(logits, model.cpu().decode(tokens, slots), atol=1e-4, rtol=0)


def test_a_step_compiles_once_for_each_block_of_the_cache():
    """It is one graph without breaks that depends on neither position nor tokens, as CUDA graphs require."""
    model = SLATE(**TINY | CONFIGURATIONS["81 tokens, more than a block of the cache"]).eval()
    slots, counter = model.sample_slots(2).detach(), CompileCounter()
    expected, compiled = model.decoding(slots), model.decoding(slots)
    step = torch.compile(compiled.next_logits, backend=counter, fullgraph=True, dynamic=False)
    tokens = torch.randint(1, 34, (model.num_tokens, 2))
    with torch.no_grad():
        for i, index in enumerate(tokens):
            seen = BLOCK if i < BLOCK else model.num_tokens
            logits = step(index, torch.tensor([i]), seen, masked=True)
            torch.testing.assert_close(logits, expected.step(index))
    assert counter.frame_count == 2


# Sampling

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 2.0 - 1e-3, -3.0])


def frequencies(count: int = 20_000, **sampling) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = choose(LOGITS.expand(count, -1), generator=generator, **sampling)
    return torch.bincount(tokens, minlength=len(LOGITS)) / count


@pytest.mark.parametrize(
    ("sampling", "kept"),  # at temperature 1 the probabilities are 0.084 0.378 0.019 0.139 0.378 0.003
    [
        (dict(temperature=0.5), [0, 1, 2, 3, 4, 5]),
        (dict(temperature=1.0), [0, 1, 2, 3, 4, 5]),
        (dict(temperature=3.0), [0, 1, 2, 3, 4, 5]),
        (dict(temperature=1.0, top_k=3), [1, 3, 4]),
        (dict(temperature=1.0, top_p=0.3), [1]),
        (dict(temperature=1.0, top_p=1e-300), [1]),
        (dict(temperature=1.0, top_p=0.5), [1, 4]),
        (dict(temperature=1.0, top_p=0.85), [1, 3, 4]),
        (dict(temperature=1.0, top_p=0.95), [0, 1, 3, 4]),
        (dict(temperature=1.0, top_p=1.0), [0, 1, 2, 3, 4, 5]),
        (dict(temperature=1.0, top_k=2, top_p=0.5), [1]),  # from the two that top_k keeps
        (dict(temperature=1.0, top_k=2, top_p=0.51), [1, 4]),
    ],
)
def test_samples_have_the_model_s_distribution_over_the_tokens_that_are_kept(sampling, kept):
    expected = torch.zeros(6)
    expected[kept] = (LOGITS / sampling["temperature"])[kept].softmax(-1)
    found = frequencies(**sampling)
    assert (found - expected).abs().max() < 5 * (0.25 / 20_000) ** 0.5
    assert ((found > 0) >= (expected > 1e-3)).all() and ((found > 0) <= (expected > 0)).all()


def test_one_token_to_choose_from_or_no_heat_is_the_most_likely_token(model):
    slots = model.sample_slots(2).detach()
    greedy = model.generate(slots)
    assert torch.equal(model.generate(slots, temperature=1.0, top_k=1), greedy)
    assert torch.equal(model.generate(slots, temperature=1.0, top_p=1e-6), greedy)
    assert torch.equal(model.generate(slots, temperature=1e-300), greedy)
    assert torch.equal(model.generate(slots, temperature=1e-4), greedy)


def test_samples_are_a_function_of_the_generator(model):
    slots = model.sample_slots(2).detach()

    def sample(seed):
        return model.generate(slots, temperature=2.0, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    assert sample(1).min() >= 0 and sample(1).max() < model.vocab_size


@pytest.mark.parametrize(
    "sampling, named",
    [
        (dict(temperature=-1.0), "temperature=-1.0"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(temperature=1.0, top_k=0), "top_k=0"),
        (dict(temperature=1.0, top_k=13), "top_k=13.*vocab_size=12"),
        (dict(temperature=1.0, top_p=0.0), "top_p=0.0"),
        (dict(temperature=1.0, top_p=1.1), "top_p=1.1"),
        (dict(top_k=3), "need a temperature"),
    ],
)
def test_settings_outside_of_their_range_are_named(sampling, named):
    model = SLATE(**TINY).eval()
    with pytest.raises(UserError, match=named):
        model.generate(model.sample_slots(1), **sampling)
