"""Jacobian measurements compared with dense linear algebra."""

import math
import re

import pytest
import torch

from implicit_slate.errors import UserError
from implicit_slate.fixed_point import (
    dense_jacobian,
    gradient_cosine,
    jacobian_regularizer,
    largest_singular_value,
    spectral_norm,
    spectral_radius,
)
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate


def linear_map(*matrices):
    """z -> A z with one matrix per image."""
    stacked = torch.stack([torch.as_tensor(m, dtype=torch.float64) for m in matrices])
    return stacked, lambda z: torch.einsum("bij,bj->bi", stacked, z)


def random_matrices(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, size, generator=generator, dtype=torch.float64)


def rotation(angle, radius=0.9):
    return radius * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize("method", ["power", "lanczos"])
def test_spectral_norm_of_random_matrices(method):
    matrices, f = linear_map(*random_matrices(4, 12))
    z = torch.zeros(4, 12, dtype=torch.float64)
    norm = spectral_norm(f, z, max_iterations=5000, tol=1e-8, method=method)
    assert torch.allclose(norm, torch.linalg.matrix_norm(matrices, 2), rtol=1e-6)
    assert torch.allclose(dense_jacobian(f, z), matrices)


def test_nearly_equal_singular_values_and_how_many_rounds_they_take():
    left, _ = torch.linalg.qr(random_matrices(1, 40)[0])
    right, _ = torch.linalg.qr(random_matrices(1, 40, seed=1)[0])
    values = torch.cat([torch.tensor([1.0, 0.9999, 0.994]), torch.linspace(0.98, 0.1, 37)]).double()
    _, f = linear_map(left * values @ right)
    found = {m: largest_singular_value(f, torch.zeros(1, 40).double(), 5000, method=m) for m in ("lanczos", "power")}
    assert all(abs(one.value.item() - 1) < 1e-4 for one in found.values())
    assert found["lanczos"].iterations * 3 < found["power"].iterations


def test_a_warm_start_saves_rounds():
    matrices = random_matrices(2, 60)
    _, f = linear_map(*matrices)
    _, similar = linear_map(*(matrices + 1e-4 * random_matrices(2, 60, seed=5)))
    z = torch.zeros(2, 60, dtype=torch.float64)
    cold = largest_singular_value(similar, z)
    warm = largest_singular_value(similar, z, v0=largest_singular_value(f, z).vector)
    assert warm.iterations < cold.iterations
    assert torch.allclose(warm.value, cold.value, rtol=1e-5)


def test_images_that_converge_early_keep_their_answer():
    easy = torch.diag(torch.tensor([3.0] + [1e-9] * 29))
    _, f = linear_map(easy, random_matrices(1, 30)[0], torch.zeros(30, 30))
    norm = spectral_norm(f, torch.zeros(3, 30, dtype=torch.float64))
    assert norm[0].item() == pytest.approx(3.0, rel=1e-6)
    assert norm[2].item() == 0 and torch.isfinite(norm).all()


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2, 2.5, math.pi])
def test_spectral_radius_of_a_rotation(angle):
    _, f = linear_map(rotation(angle))
    assert spectral_radius(f, torch.zeros(1, 2, dtype=torch.float64)).item() == pytest.approx(0.9, rel=1e-6)


def test_spectral_radius_of_random_and_non_normal_matrices():
    matrices = random_matrices(4, 20)
    matrices[0] = 0.3 * torch.triu(matrices[0], 1) + torch.diag(torch.linspace(0.1, 0.9, 20))
    _, f = linear_map(*matrices)
    expected = torch.linalg.eigvals(matrices).abs().amax(1)
    assert torch.allclose(spectral_radius(f, torch.zeros(4, 20, dtype=torch.float64)), expected, rtol=1e-4)


def test_tuple_states_are_one_vector_an_image():
    def f(z):
        a, b = z
        return b.flatten(1), 2 * a.view(2, 2, 1)

    z = (torch.ones(2, 2), torch.ones(2, 2, 1))
    assert torch.allclose(spectral_norm(f, z), torch.full((2,), 2.0))
    assert torch.allclose(spectral_radius(f, z), torch.full((2,), math.sqrt(2)), rtol=1e-4)


def test_measuring_leaves_gradients_and_random_numbers_alone():
    weight, z = torch.randn(3, 3, requires_grad=True), torch.zeros(2, 3)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    spectral_norm(lambda z: torch.tanh(z @ weight), z)
    spectral_radius(lambda z: torch.tanh(z @ weight), z)
    assert weight.grad is None and not z.requires_grad
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("measure", [spectral_norm, lambda f, z: spectral_norm(f, z, method="power"), spectral_radius])
def test_an_image_whose_jacobian_is_not_finite_leaves_the_others_alone(measure):
    scale = torch.tensor([[0.5], [torch.nan], [2.0]])
    values = measure(lambda z: scale * z, torch.ones(3, 4))
    assert values[1].isnan() and torch.allclose(values[[0, 2]], torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize(
    ("measure", "settings", "message"),
    [
        (spectral_norm, {"method": "lanzcos"}, "method='lanzcos'; did you mean 'lanczos'"),
        (spectral_norm, {"max_iterations": 0}, "max_iterations=0: expected at least 1"),
        (spectral_radius, {"max_iterations": 0}, "max_iterations=0: expected at least 1"),
    ],
)
def test_wrong_settings_are_named(measure, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        measure(torch.tanh, torch.ones(1, 2), **settings)


@pytest.mark.parametrize("measure", [spectral_norm, spectral_radius])
def test_a_map_that_ignores_its_state_has_norm_zero_and_a_jacobian_that_is_not_finite_has_none(measure):
    z = torch.zeros(2, 3)
    assert torch.equal(measure(lambda z: torch.ones(2, 3), z), torch.zeros(2))
    assert measure(lambda z: torch.sqrt(z) + z.roll(1, 1), z).isnan().all()  # the root has infinite slope at 0


def test_autocast_does_not_change_what_is_measured_of_a_step_in_float32():
    """As in a training step, which computes the regulariser under autocast."""
    torch.manual_seed(0)
    module = SlotAttention(input_size=8, num_slots=3, slot_size=8, mlp_size=8, num_heads=2)
    f, z = SlotUpdate(module, torch.randn(2, 5, 8)), module.sample_slots(2).detach()
    parameters = [module.gru.weight_hh, module.project_q.weight]

    def measured():
        found = largest_singular_value(f, z)
        regularizer = jacobian_regularizer(f, z, torch.Generator().manual_seed(0))
        cosine = gradient_cosine(lambda z: z.square().sum(), f, z, parameters, "implicit").cosine
        values = [found.value, found.vector, spectral_radius(f, z), dense_jacobian(f, z), regularizer, cosine]
        return values, regularizer

    expected, regularizer = measured()
    gradients = torch.autograd.grad(regularizer.sum(), parameters)
    with torch.autocast("cpu", torch.bfloat16):
        found, regularizer = measured()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(regularizer.sum(), parameters), gradients, rtol=0, atol=0)
