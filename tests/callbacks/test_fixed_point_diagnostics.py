"""FixedPointDiagnostics compared with the library's functions, and what it shares with SlotJacobian."""

import itertools
from typing import get_args

import lightning as L
import pytest
import torch

from callbacks import FixedPointDiagnostics, SlotJacobian, SlotUsage
from callbacks.fixed_point_diagnostics import Measure, distance_between_sets
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import dense_jacobian, fixed_point, picard
from implicit_slate.training import SLATEModule
from tests.callbacks.fitting import KINDS, fit, module, refinement
from tests.tiny import TinyImages
from tests.training.setting import assert_same_weights


def diagnostics(*measures, **options):
    return FixedPointDiagnostics(list(measures), **{"every_n_steps": 100, "num_images": 3, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_at_and_beyond_the_depth_of_training(kind):
    model, callback = module(kind), diagnostics("residual_at_depth")
    scalars = fit(model, callback)
    f, z, _ = refinement(model, callback)
    depths = {}
    for depth in range(1, 25):
        with torch.no_grad():
            fz = f(z)
        depths[depth] = ((fz - z).flatten(1).norm(dim=1) / fz.flatten(1).norm(dim=1)).mean().item()
        z = fz
    names = {f"residual/depth_{depth}" for depth in (3, 6, 12, 24)}
    assert scalars.keys() == names | {f"{name}_image_max" for name in names}
    for depth in (3, 6, 12, 24):
        assert scalars[f"residual/depth_{depth}"][2] == pytest.approx(depths[depth], rel=1e-4, abs=1e-7)
        assert scalars[f"residual/depth_{depth}_image_max"][2] >= scalars[f"residual/depth_{depth}"][2]


@pytest.mark.parametrize("kind", KINDS)
def test_spectral_radius_and_regulariser_are_the_dense_jacobian_s(kind):
    model, callback = module(kind), diagnostics("spectral_radius", "jacobian_regularizer")
    scalars = fit(model, callback)
    f, _, z = refinement(model, callback)
    jacobian = dense_jacobian(f, z)
    radius = torch.linalg.eigvals(jacobian.double()).abs().amax(1)
    assert scalars["jacobian/spectral_radius"][2] == pytest.approx(radius.mean().item(), rel=1e-3)
    v = torch.randn(3, jacobian.shape[1], generator=torch.Generator().manual_seed(0))
    expected = (v[:, None] @ jacobian).square().mean((1, 2))
    assert scalars["jacobian/regularizer"][2] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert scalars["jacobian/regularizer_image_max"][2] == pytest.approx(expected.max().item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_cosine_is_the_angle_to_the_exact_gradient(kind):
    model, callback = module(kind, gradient="implicit"), diagnostics("gradient_cosine")
    scalars = fit(model, callback)
    refinement(model, callback)  # evaluation mode
    parameters = [p for p in model.model.slot_attention.parameters() if p.requires_grad]
    flat = {}
    for mode in ("implicit", "exact(dense)"):
        f = model.model.refinement(callback._batch["image"])
        z = fixed_point(f, callback._slots_init, max_iterations=3, gradient=mode).z
        loss = model.model.slot_loss(callback._batch, z)
        flat[mode] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    ours, exact = flat["implicit"], flat["exact(dense)"]
    expected = torch.cosine_similarity(ours, exact, dim=0).item()
    assert expected < 0.99  # otherwise the test would show nothing
    assert scalars["gradient/cosine"][2] == pytest.approx(expected, abs=1e-3)
    assert scalars["gradient/norm_ratio"][2] == pytest.approx((ours.norm() / exact.norm()).item(), rel=1e-2)
    assert scalars["gradient/adjoint_residual_image_max"][2] < 1e-4
    assert 1 <= scalars["gradient/adjoint_products"][2] <= 100
    assert "gradient/cosine_image_max" not in scalars


class Multistable(torch.nn.Module):
    """A stand-in for a model whose refinement is `f`."""

    def __init__(self, f):
        super().__init__()
        self.f, self.slot_attention = f, torch.nn.Module()
        self.slot_attention.slot_init = "gaussian"

    def sample_slots(self, batch_size, generator=None):
        return torch.randn(batch_size, 2, 1, generator=generator)

    def refinement(self, images):
        return self.f


@pytest.mark.parametrize(
    ("f", "distinct", "converged"),
    [
        (lambda z: torch.tanh(4 * z), 3, 8),  # each number goes to one of two: both high, both low, one of each
        (lambda z: 1 - 2 * z, 0, 0),  # does not converge
    ],
)
def test_basins_are_counted_as_sets_of_slots(f, distinct, converged):
    callback, batch = diagnostics("basins"), {"image": torch.zeros(3, 3, 4, 4)}
    values = callback.measure(Multistable(f), batch, torch.zeros(3, 2, 1), is_last=False)
    assert values["basins/distinct"].tolist() == [distinct] * 3
    assert values["basins/converged"].tolist() == [converged] * 3


def test_basins_of_learned_queries_are_refused():
    with pytest.raises(UserError, match="basins.*random initial slots"):
        fit(module(gradient="bilevel", slot_init="queries"), diagnostics("basins"))


def test_sets_are_compared_in_the_order_that_fits_best():
    torch.manual_seed(0)
    slots, other = torch.randn(4, 5, 3), torch.randn(4, 5, 3)
    shuffled = slots[:, torch.randperm(5)]
    assert distance_between_sets(slots, shuffled).max() == 0
    orders = [slots - other[:, list(order)] for order in itertools.permutations(range(5))]
    best = torch.stack(orders).flatten(2).norm(dim=2).amin(0) / slots.flatten(1).norm(dim=1)
    torch.testing.assert_close(distance_between_sets(slots, other), best)


def test_an_unknown_measure_is_named():
    with pytest.raises(UserError, match="measures=.*'basin'.*: expected a list of one of residual_at_depth, .*"):
        FixedPointDiagnostics(["basin"])


# Behaviour shared by all probes.

MEASURES = get_args(Measure)
PROBES = [SlotJacobian, SlotUsage, lambda **options: FixedPointDiagnostics(MEASURES, **options)]
NAMES = ["SlotJacobian", "SlotUsage", "FixedPointDiagnostics"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probe", PROBES, ids=NAMES)
@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_measuring_leaves_the_model_and_its_noise_alone(kind, probe, gradient):
    options = dict(gradient=gradient) | (dict(dropout=0.1) if kind is SLATEModule else {})
    watched, alone, noise = module(kind, **options), module(kind, **options), []
    for model, callbacks in ((watched, [probe(every_n_steps=2, num_images=2)]), (alone, [])):
        torch.manual_seed(5)
        fit(model, *callbacks, max_steps=3)
        noise.append(torch.rand(1))
    assert torch.equal(*noise)
    assert watched.training and all(part.training for part in watched.model.modules())
    assert_same_weights(watched, alone)


@pytest.mark.parametrize("probe", PROBES, ids=NAMES)
def test_it_measures_at_its_cadence_with_the_same_slots_after_a_restart(probe, tmp_path):
    first, second = probe(every_n_steps=2, num_images=2), probe(every_n_steps=2, num_images=2)
    model = module(gradient="unrolled")  # trains μ and σ, so that a new draw would differ
    scalars = fit(model, first, max_steps=3, save=tmp_path / "last.ckpt")
    assert {tuple(steps) for name, steps in scalars.items() if name not in ("evaluations", *RADIUS)} == {(0, 2, 3)}
    scalars = fit(model, second, max_steps=5, resume=tmp_path / "last.ckpt")
    assert {tuple(steps) for name, steps in scalars.items() if name not in RADIUS} == {(4, 5)}  # no `evaluations`
    assert torch.equal(first._slots_init, second._slots_init)
    assert not torch.equal(second._slots_init, second._sample_slots(model.model))


@pytest.mark.parametrize("probe", [SlotJacobian, SlotUsage])
def test_a_run_that_goes_on_with_other_slots_or_images_measures_those(probe, tmp_path):
    fit(module(), probe(num_images=2), save=tmp_path / "last.ckpt")
    for num_slots, num_images in ((4, 2), (3, 5)):
        model, callback = module(num_slots=num_slots), probe(num_images=num_images)
        fit(model, callback, max_steps=3, resume=tmp_path / "last.ckpt")
        assert callback._slots_init.shape == (num_images, num_slots, model.model.slot_attention.slot_size)


RADIUS = ("jacobian/spectral_radius", "jacobian/spectral_radius_image_max")


def test_several_at_their_own_cadences():
    often, seldom = diagnostics("residual_at_depth", every_n_steps=1), diagnostics("jacobian_regularizer")
    scalars = fit(module(), often, seldom, max_steps=3)
    assert list(scalars["residual/depth_3"]) == [0, 1, 2, 3]
    assert list(scalars["jacobian/regularizer"]) == [0, 3]


def test_learned_queries_are_measured_as_they_are_now():
    model, callback = module(gradient="bilevel", slot_init="queries"), diagnostics("residual_at_depth")
    scalars = fit(model, callback)
    queries = model.model.slot_attention.queries.detach().expand(3, -1, -1)
    assert torch.equal(callback._slots_init, queries)
    f, _, _ = refinement(model, callback)
    assert scalars["residual/depth_3"][2] == pytest.approx(picard(f, queries, max_iterations=3).residual.mean().item())


def test_a_step_that_is_not_finite_is_not_measured():
    model, callback = module(), SlotJacobian(every_n_steps=1, num_images=2)
    with torch.no_grad():
        model.model.slot_attention.mlp[0].weight.fill_(torch.inf)
    callback._batch, callback._slots_init = TinyImages().probe(2), model.model.sample_slots(2)
    callback._measure(L.Trainer(logger=False), model)
    assert not callback.latest
