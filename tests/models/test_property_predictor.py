"""Set prediction from slots: the model, its loss, and training a head on another model's slots."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from implicit_slate.errors import UserError
from implicit_slate.models import SLATE, PropertyPredictor, PropertyReadout, SpatialBroadcast
from implicit_slate.models.property_predictor import set_loss
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES, TinyImages

SIZES = dict(image_size=16, width=8, num_slots=4, slot_size=12, slot_mlp_size=16, num_iterations=3)


def model(seed=0, **options):
    torch.manual_seed(seed)
    return PropertyPredictor(**SIZES | options)


def objects(batch=3, rows=3, seed=0):
    """Properties (B, M, P), with one object fewer in each further image, padded with rows of zeros."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(batch, rows, 19, generator=generator)
    made[..., -1] = 1
    for i in range(batch):
        made[i, rows - i :] = 0
    return made


def images(count=3):
    return TinyImages().probe(count)["image"]


def test_the_default_sizes_are_those_of_the_source():
    made = PropertyPredictor()
    assert sum(p.numel() for p in made.parameters()) == 380_755
    assert made.refinement(torch.rand(1, 3, 128, 128)).keys.shape == (1, 1, 32 * 32, 64)


def test_a_slot_is_an_object_with_values_in_the_unit_interval():
    losses = model().losses(images(), objects())
    assert losses.predictions.shape == (3, 4, 19) and losses.loss.shape == ()
    assert losses.predictions.min() > 0 and losses.predictions.max() < 1
    assert losses.update.attention.shape == (3, 16, 4) and losses.solution.evaluations == 4


@pytest.mark.parametrize("size", [0, 18, 30])
def test_a_size_that_is_no_multiple_of_four(size):
    with pytest.raises(UserError, match=f"image_size={size}: expected a positive multiple of 4"):
        model(image_size=size)


def test_the_loss_is_that_of_the_cheapest_matching():
    predictions, truth = torch.rand(3, 4, 19), F.pad(objects(), (0, 0, 0, 1))
    expected = 0.0
    for rows, real in zip(predictions, truth):
        expected += min(
            sum(F.huber_loss(rows[i], real[j]).item() for i, j in enumerate(order))
            for order in itertools.permutations(range(4))
        )
    assert set_loss(predictions, objects()).item() == pytest.approx(expected / 3)


def test_orders_do_not_matter_and_a_perfect_set_costs_nothing():
    predictions, truth = torch.rand(3, 4, 19), objects()
    loss = set_loss(predictions, truth)
    torch.testing.assert_close(set_loss(predictions[:, [2, 0, 3, 1]], truth[:, [1, 2, 0]]), loss)
    assert set_loss(F.pad(truth, (0, 0, 1, 0)), truth) == 0 < loss


def test_a_slot_without_an_object_learns_that_it_has_none():
    predictions = torch.full((1, 2, 19), 0.5, requires_grad=True)
    set_loss(predictions, torch.ones(1, 1, 19)).backward()
    assert sorted(predictions.grad.sign().mean(-1)[0].tolist()) == [-1, 1]


def test_more_objects_than_slots_are_refused():
    with pytest.raises(UserError, match="num_slots=4: scenes of up to 5 objects need at least 5 slots"):
        model().losses(images(), objects(rows=5))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_predictions_that_are_not_finite_give_such_a_loss(bad):
    predictions = torch.rand(3, 4, 19)
    predictions[0, 1, 2] = bad
    assert not set_loss(predictions, objects()).isfinite()


def test_refinement_and_slot_loss_are_those_of_training():
    made, image, truth = model(), images(), objects()
    slots_init = made.sample_slots(3, torch.Generator().manual_seed(0)).detach()
    losses = made.losses(image, truth, slots_init)
    batch = {"image": image, "properties": truth}
    torch.testing.assert_close(made.slot_loss(batch, losses.solution.z), losses.loss)
    z, f = slots_init, made.refinement(image)
    for _ in range(4):
        z = f(z)
    torch.testing.assert_close(z, losses.solution.z)


def test_masks_are_the_attention_over_four_pixels_each():
    made = model()
    slots_init = made.sample_slots(3).detach()
    masks = made.segment(images(), slots_init)
    attention = made.losses(images(), objects(), slots_init).update.attention
    assert masks.shape == (3, 4, 16, 16)
    torch.testing.assert_close(masks[:, :, 4:8, 8:12], attention[:, 6, :, None, None].expand(-1, -1, 4, 4))
    torch.testing.assert_close(masks.sum(1), torch.ones(3, 16, 16))


def test_it_makes_no_images():
    with pytest.raises(UserError, match="makes no images"):
        model().views(images())


SOURCES = {"slate": lambda **more: SLATE(**SLATE_SIZES | more),
           "broadcast": lambda **more: SpatialBroadcast(**BROADCAST_SIZES | more)}  # fmt: skip


@pytest.mark.parametrize("gradient", ["implicit", "unrolled", "exact(gmres)"])
@pytest.mark.parametrize("kind", SOURCES)
def test_only_the_head_is_trained(kind, gradient):
    torch.manual_seed(0)
    source = SOURCES[kind](gradient=gradient)
    readout = PropertyReadout(source).train()
    assert not any(module.training for module in source.modules()) and readout.head.training
    losses = readout.losses(images(), objects())
    losses.loss.backward()
    touched = {name for name, p in readout.named_parameters() if p.grad is not None}
    assert touched == {name for name, _ in readout.named_parameters() if name.startswith("head.")}
    assert losses.predictions.shape == (3, 3, 19) and losses.solution.adjoint is None


def test_the_slots_are_those_that_the_source_finds():
    source = SpatialBroadcast(**BROADCAST_SIZES).eval()
    slots_init = source.sample_slots(3).detach()
    found = PropertyReadout(source).losses(images(), objects(), slots_init).solution.z
    torch.testing.assert_close(found, source.encode(images(), slots_init)[0])
    masks = PropertyReadout(source).segment(images(), slots_init)
    assert torch.equal(masks, source.segment(images(), slots_init))
