"""Comparison with a small public SLATE: all values and gradients, in both gradient modes."""

import pytest
import torch
import torch.nn.functional as F

from implicit_slate import load_public_checkpoint
from implicit_slate.fixed_point import dense_jacobian, spectral_norm, spectral_radius
from implicit_slate.models.public_checkpoint import rename

MODES = ["unrolled", "implicit"]


def load(state, gradient):
    return load_public_checkpoint(
        state, num_slots=3, num_iterations=3, num_slot_heads=1, num_heads=2, gradient=gradient
    )


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture
def model(state, mode):
    return load(state, mode)


def test_tokens(model, reference):
    assert torch.equal(model.tokenize(reference["image"]), reference["tokens"])


def test_slots_and_logits(model, mode, reference):
    slots, _ = model.encode(reference["tokens"], reference["slots_init"])
    close(slots, reference["slots" if mode == "unrolled" else "slots_implicit"])
    close(model.decode(reference["tokens"], slots), reference[f"{mode}/logits"])


def test_attention_is_that_of_the_last_application(state, reference):
    _, attention = load(state, "unrolled").encode(reference["tokens"], reference["slots_init"])
    close(attention, reference["attention"])
    assert torch.allclose(attention.sum(-1), torch.ones(()))


def test_cross_entropy_and_every_gradient(model, mode, reference, state):
    loss = model.predict(reference["tokens"], reference["slots_init"]).cross_entropy
    close(loss, reference[f"{mode}/cross_entropy"])
    loss.backward()
    expected = {
        rename(name.removeprefix(f"{mode}/grad/"), state): value
        for name, value in reference.items()
        if name.startswith(f"{mode}/grad/")
    }
    actual = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert actual.keys() - expected.keys() <= {"slot_attention.slot_mu", "slot_attention.slot_log_sigma"}
    assert expected.keys() <= actual.keys()
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        # The second term is for gradients that are zero, as that of norm_slots.bias with one slot head.
        assert (actual[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * whole, name


def test_reconstruction_of_the_dvae(model, reference):
    close(model.dvae.decode_tokens(reference["tokens"]), reference["dvae_reconstruction"])
    close(model.dvae.decode(F.one_hot(reference["tokens"], 48).float()), reference["dvae_reconstruction"])


def test_reconstruction_through_the_slots(state, reference):
    model = load(state, "unrolled")
    slots, _ = model.encode(reference["tokens"], reference["slots_init"])
    close(model.render(model.generate(slots)), reference["reconstruction"])


def test_jacobian(model, reference):
    f, slots = model.slot_update(reference["tokens"]), reference["slots"]
    close(spectral_norm(f, slots), reference["jacobian/spectral_norm"])
    # Power iteration is slow, because the first two singular values differ by only 0.6%.
    close(spectral_norm(f, slots, max_iterations=300, method="power"), reference["jacobian/spectral_norm"], 1e-4)
    close(spectral_radius(f, slots), reference["jacobian/spectral_radius"])
    close(torch.linalg.matrix_norm(dense_jacobian(f, slots), 2), reference["jacobian/spectral_norm"])
