"""SLATE as a whole: shapes, losses compared with a plain model's, gradient flow, generation, memory, symmetry."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from benchmarks.memory import saved_bytes
from benchmarks.plain_slate import PlainSLATE
from benchmarks.plain_slate import gumbel_noise as exponential_gumbel_noise
from implicit_slate import SLATE
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Solver
from implicit_slate.models import PropertyPredictor, SpatialBroadcast
from implicit_slate.models import slate as slate_module
from implicit_slate.models.dvae import gumbel_softmax
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES

TINY = SLATE_SIZES | dict(slot_size=24, slot_mlp_size=20, num_blocks=2)
CONFIGURATIONS = {  # differences from TINY
    "tiny": {},
    "several slot heads": dict(num_slot_heads=4),
    "grey, wide, shallow": dict(image_channels=1, d_model=40, num_heads=5, num_blocks=1),
    "small slots, many": dict(slot_size=6, num_slots=9, num_slot_heads=2, slot_mlp_size=50),
    "larger image, deep": dict(image_size=36, vocab_size=33, num_blocks=4),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["unrolled", "implicit"])
def mode(request):
    return request.param


@pytest.fixture(params=CONFIGURATIONS)
def sizes(request):
    return TINY | CONFIGURATIONS[request.param]


def random_images(sizes: dict, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, sizes.get("image_channels", 3), sizes["image_size"], sizes["image_size"])


def random_tokens(sizes: dict, batch: int = 2) -> torch.Tensor:
    return torch.randint(sizes["vocab_size"], (batch, (sizes["image_size"] // 4) ** 2))


def test_number_of_parameters():
    """Compared with the layers of docs/method.md, "SLATE", counted by hand."""
    assert sum(p.numel() for p in SLATE().parameters()) == 3_616_451
    numbers = [sum(p.numel() for p in SLATE(**TINY | changed).parameters()) for changed in CONFIGURATIONS.values()]
    assert numbers == [171_419, 171_419, 192_353, 166_211, 184_384]


def test_shapes(sizes, mode):
    model, image, tokens = SLATE(**sizes, gradient=mode).eval(), random_images(sizes), random_tokens(sizes)
    num_tokens, num_slots = tokens.shape[1], sizes["num_slots"]
    assert model.tokenize(image).shape == tokens.shape
    slots, attention = model.encode(tokens)
    assert slots.shape == (2, num_slots, sizes["slot_size"]) == model.sample_slots(2).shape
    assert attention.shape == (2, num_tokens, num_slots)
    assert torch.allclose(attention.sum(-1), torch.ones(2, num_tokens), atol=1e-5) and (attention >= 0).all()
    assert model.decode(tokens, slots).shape == (2, num_tokens, sizes["vocab_size"])
    generated = model.generate(slots)
    assert generated.shape == tokens.shape and generated.max() < sizes["vocab_size"]
    rendered = model.render(tokens)
    assert rendered.shape == image.shape and rendered.min() >= 0 and rendered.max() <= 1
    for losses in (model.losses(image), model.train().losses(image)):
        assert losses.cross_entropy.shape == losses.mse.shape == () and losses.tokens.shape == tokens.shape
    assert model.predict(tokens).solution.evaluations == sizes["num_iterations"] + (mode == "implicit")


@pytest.mark.parametrize("hard", [False, True])
def test_losses_and_gradients_are_those_of_the_plain_model(sizes, mode, hard, monkeypatch):
    ours, plain = SLATE(**sizes, gradient=mode), PlainSLATE(**sizes, gradient=mode)
    plain.load_state_dict(ours.state_dict())
    image = random_images(sizes)
    noise = [exponential_gumbel_noise(plain.dvae.encoder(image)) for _ in range(2)]
    soft, target = (x.permute(0, 2, 3, 1).flatten(1, 2) for x in noise)
    monkeypatch.setattr(slate_module, "gumbel_softmax", partial(gumbel_softmax, noise=soft))
    monkeypatch.setattr(slate_module, "sample_tokens", lambda logits: (logits + target).argmax(-1))

    torch.manual_seed(1)  # only the initial slots are drawn
    actual = ours.losses(image, tau=0.7, hard=hard)
    torch.manual_seed(1)
    expected = plain.losses(image, tau=0.7, hard=hard, noise=tuple(noise))
    assert torch.equal(actual.tokens, expected.tokens)
    for loss, plain_loss in zip(actual[:2], expected[:2], strict=True):
        assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-5)

    for losses in (actual, expected):
        (losses.cross_entropy + losses.mse).backward()
    whole = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None]).norm()
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert (p.grad - q.grad).norm() <= 1e-4 * q.grad.norm() + 1e-6 * whole, name


def test_no_gradient_crosses_between_the_dvae_and_the_rest():
    model = SLATE(**TINY)
    parts = {"dvae": [], "rest": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            parts["dvae" if name.startswith("dvae.") else "rest"].append(p)
    for loss, reached in (("cross_entropy", "rest"), ("mse", "dvae")):
        value = getattr(model.losses(random_images(TINY), hard=True), loss)
        for part, parameters in parts.items():
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
            if part == reached:  # every parameter, since DDP refuses parameters without a gradient
                assert all(gradient is not None for gradient in gradients)
            else:
                assert all(gradient is None for gradient in gradients)


def test_what_a_training_step_saves_grows_with_n_only_when_unrolled(mode):
    models = {n: SLATE(**TINY | dict(num_iterations=n), gradient=mode) for n in (1, 2, 32)}
    image = random_images(TINY)
    saved = {n: saved_bytes(lambda model=model: model.losses(image))[0] for n, model in models.items()}
    one = saved[2] - saved[1]
    assert saved[32] == saved[1] + 31 * one and (one > 0) is (mode == "unrolled")


def test_evaluation_has_no_noise_and_training_has():
    model, image = SLATE(**TINY | dict(dropout=0.1, num_iterations=1)), random_images(TINY)
    slots_init = model.sample_slots(2)
    model.sample_slots = lambda batch_size: slots_init  # so that initial slots are random in both modes
    model.slot_attention.sample_slots = model.sample_slots
    first, second = model.losses(image), model.losses(image)
    assert first.mse != second.mse and first.cross_entropy != second.cross_entropy
    model.eval()
    first, second = model.losses(image), model.losses(image, tau=0.1, hard=True)
    assert first.mse == second.mse and first.cross_entropy == second.cross_entropy
    assert torch.equal(first.tokens, model.tokenize(image))
    predicted = model.predict(first.tokens, slots_init).cross_entropy
    assert first.cross_entropy.item() == pytest.approx(predicted.item(), rel=1e-6)
    reconstruction = model.dvae.decode(F.one_hot(first.tokens, 12).float())
    assert first.mse.item() == pytest.approx(((reconstruction - image) ** 2).sum().item() / 2, rel=1e-5)


def test_losses_are_means_over_images_and_sums_over_the_rest():
    model, image = SLATE(**TINY).eval(), random_images(TINY, batch=4)
    slots_init = model.sample_slots(4)
    tokens = model.tokenize(image)
    together = model.predict(tokens, slots_init).cross_entropy.item()
    apart = [model.predict(tokens[i : i + 1], slots_init[i : i + 1]).cross_entropy for i in range(4)]
    assert together == pytest.approx(sum(apart).item() / 4, rel=1e-5)
    logits = model.decode(tokens, model.encode(tokens, slots_init)[0])
    by_hand = -logits.log_softmax(-1).gather(-1, tokens[..., None]).sum() / 4
    assert together == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("num_slot_heads", [1, 4])
def test_slots_are_equivariant_under_permutation(num_slot_heads, mode):
    model = SLATE(**TINY | dict(num_slot_heads=num_slot_heads), gradient=mode).eval()
    tokens, slots_init, order = random_tokens(TINY), model.sample_slots(2), torch.tensor([2, 0, 1])
    slots, attention = model.encode(tokens, slots_init)
    permuted_slots, permuted_attention = model.encode(tokens, slots_init[:, order])
    assert torch.allclose(permuted_slots, slots[:, order], atol=1e-5)
    assert torch.allclose(permuted_attention, attention[:, :, order], atol=1e-5)
    assert not torch.allclose(permuted_slots, slots, atol=1e-3)
    assert torch.allclose(model.decode(tokens, permuted_slots), model.decode(tokens, slots), atol=1e-4)


def test_initial_slots_come_from_mu_and_sigma_and_a_given_generator():
    model = SLATE(**TINY)
    attention = model.slot_attention
    slots = model.sample_slots(20_000).detach()
    sigma = attention.slot_log_sigma.exp().squeeze()
    error = sigma / slots[..., 0].numel() ** 0.5
    assert ((slots.mean((0, 1)) - attention.slot_mu.squeeze()).abs() < 5 * error).all()
    assert ((slots.std((0, 1)) - sigma).abs() < 5 * error).all()
    again = [model.sample_slots(2, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(image_size=18), "image_size=18: expected a positive multiple of 4"),
        (dict(num_heads=3), "d_model=16 is not divisible by num_heads=3"),
        (dict(num_slot_heads=5), "slot_size=24 is not divisible by num_slot_heads=5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        SLATE(**TINY | wrong)


every_model = pytest.mark.parametrize(
    ("kind", "sizes"), [(SLATE, TINY), (SpatialBroadcast, BROADCAST_SIZES), (PropertyPredictor, BROADCAST_SIZES)]
)


@every_model
def test_the_settings_of_slot_attention_reach_it(kind, sizes):
    settings = dict(num_iterations=5, gradient="exact(dense)", solver="broyden", tol=1e-3, slot_init="queries")
    made = kind(**sizes | settings).slot_attention
    found = made.solver, str(made.gradient), made.slot_init, made.norm_slots.eps
    assert found == (Solver("broyden", 5, 1e-3), "exact(dense)", "queries", 1e-5 if kind is SLATE else 1e-3)


@every_model
@pytest.mark.parametrize(
    "image", [torch.rand(2, 3, 32, 32), torch.rand(3, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)]
)
def test_what_are_no_images_of_the_model_is_refused(kind, sizes, image):
    with pytest.raises(UserError, match=rf"expected images \(B, C, 16, 16\).*found .*{image.dtype}"):
        kind(**sizes).refinement(image)


def test_tokens_slots_and_generation_are_in_float32_under_autocast():
    model, image = SLATE(**TINY).eval(), random_images(TINY)
    tokens = model.tokenize(image)
    slots_init = model.sample_slots(len(image)).detach()
    slots = model.encode(tokens, slots_init)[0]
    generated = model.generate(slots)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.tokenize(image), tokens) and torch.equal(model.generate(slots), generated)
        losses, rounded = model.losses(image), model.encode(tokens, slots_init)[0]
    assert {losses.cross_entropy.dtype, losses.mse.dtype, losses.prediction.solution.residual.dtype} == {torch.float32}
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - slots).norm() < 0.05 * slots.norm()  # matrix products outside the refinement are rounded
