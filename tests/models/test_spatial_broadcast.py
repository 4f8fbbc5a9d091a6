"""The broadcast model: sizes, and a plain version of its forward pass; also behaviour of all models with slots."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.plain_slate import refine
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import dense_jacobian
from implicit_slate.models import SLATE, SpatialBroadcast
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_images(size=16, batch=2):
    return torch.rand(batch, 3, size, size)


def tiny(**options):
    return SpatialBroadcast(**{**BROADCAST_SIZES, **options})


def test_number_of_parameters():
    assert sum(p.numel() for p in SpatialBroadcast().parameters()) == 890_308


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_images_of_every_size_come_back_in_their_size(size):
    model, image = tiny(image_size=size), random_images(size)
    slots, attention = model.encode(image)
    decoded = model.decode(slots)
    assert slots.shape == (2, 3, 12) and attention.shape == (2, size * size, 3)
    assert decoded.image.shape == image.shape
    assert decoded.components.shape == (2, 3, 3, size, size) and decoded.masks.shape == (2, 3, size, size)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, size * size))
    torch.testing.assert_close(decoded.masks.sum(1), torch.ones(2, size, size))
    doublings = sum(isinstance(layer, torch.nn.ConvTranspose2d) for layer in model.decoder)
    assert doublings == {16: 1, 32: 2, 64: 3, 128: 4}[size]


@pytest.mark.parametrize("size", [0, 4, 8, 24, 30, 48, 96, 100])
def test_other_sizes_are_refused(size):
    with pytest.raises(UserError, match=f"image_size={size}: .*16, 32, 64, 128"):
        tiny(image_size=size)


def plain_forward(model, image, slots):
    """The layers of docs/method.md, written out: reconstruction in [0, 1], and masks."""
    weights = dict(model.named_parameters())

    def dense(x, name):
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def positions(side, name):
        line = torch.linspace(0, 1, side)
        y, x = line[:, None].expand(side, side), line[None].expand(side, side)
        return dense(torch.stack([y, x, 1 - y, 1 - x], -1), name).permute(2, 0, 1)

    x = 2 * image - 1
    for layer in (0, 2, 4, 6):
        x = F.conv2d(x, weights[f"encoder.{layer}.weight"], weights[f"encoder.{layer}.bias"], padding="same").relu()
    x = (x + positions(image.shape[-1], "encoder_positions.project")).permute(0, 2, 3, 1).flatten(1, 2)
    x = dense(dense(norm(x, "slot_encoder.0"), "slot_encoder.1.0").relu(), "slot_encoder.1.2")

    model.slot_attention.sample_slots = lambda batch_size: slots
    slots = refine(model.slot_attention, x)

    components, logits = [], []
    for slot in slots.unbind(1):  # one slot at a time: slots are independent before the softmax
        x = slot[:, :, None, None].expand(-1, -1, 8, 8) + positions(8, "decoder_positions.project")
        for layer in range(0, len(model.decoder), 2):
            weight, bias = weights[f"decoder.{layer}.weight"], weights[f"decoder.{layer}.bias"]
            if layer < len(model.decoder) - 3:
                x = F.conv_transpose2d(x, weight, bias, stride=2, padding=2, output_padding=1).relu()
            else:
                x = F.conv2d(x, weight, bias, padding="same")
                x = x.relu() if layer < len(model.decoder) - 1 else x
        components.append(x[:, :3]), logits.append(x[:, 3:])
    masks = torch.stack(logits).softmax(0)
    return ((torch.stack(components) * masks).sum(0) + 1) / 2, masks.squeeze(2).transpose(0, 1)


@pytest.mark.parametrize("size", [16, 32])
def test_the_forward_is_that_of_a_plain_restatement(size):
    model = tiny(image_size=size, gradient="unrolled")
    with torch.no_grad():  # because at their initial 0 and 1, errors in biases and norms would not show
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    image, slots_init = random_images(size), model.sample_slots(2)
    reconstruction, masks = plain_forward(model, image, slots_init)
    decoded = model.decode(model.encode(image, slots_init)[0])
    torch.testing.assert_close(decoded.image, reconstruction, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decoded.masks, masks, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_mean_squared_error_at_the_range_of_the_source():
    model, image = tiny(), random_images()
    slots_init = model.sample_slots(2)
    losses = model.losses(image, slots_init)
    reconstruction = model.decode(losses.solution.z).image
    assert losses.loss.item() == pytest.approx(F.mse_loss(2 * reconstruction - 1, 2 * image - 1).item(), rel=1e-5)
    assert losses.mse.item() == pytest.approx((reconstruction - image).square().sum().item() / 2, rel=1e-5)
    torch.testing.assert_close(losses.update(losses.solution.z), model.refinement(image)(losses.solution.z))


# Behaviour of all models with slots.


@pytest.fixture(params=[(SLATE, SLATE_SIZES), (SpatialBroadcast, BROADCAST_SIZES)], ids=["SLATE", "SpatialBroadcast"])
def model(request):
    kind, sizes = request.param
    return kind(**sizes).eval()


def test_the_refinement_is_the_step_that_the_model_iterates(model):
    image, slots_init = random_images(), model.sample_slots(2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(slots_init, model.sample_slots(2, torch.Generator().manual_seed(0)))
    f, slots = model.refinement(image), slots_init
    for _ in range(4):  # three iterations, and the application that `implicit` records
        slots = f(slots)
    source = model.tokenize(image) if isinstance(model, SLATE) else image
    torch.testing.assert_close(model.encode(source, slots_init)[0], slots)


def test_one_image_does_not_see_another(model):
    """The Jacobian of an image's slots is the same alone and in a batch."""
    image, z = random_images(), model.sample_slots(2).detach()
    together = dense_jacobian(model.refinement(image), z)
    alone = dense_jacobian(model.refinement(image[1:]), z[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-3)


def test_slot_loss_is_the_part_of_the_loss_that_depends_on_the_slots(model):
    image = random_images()
    losses = model.losses(image)
    if isinstance(model, SLATE):
        loss, solution = losses.cross_entropy, losses.prediction.solution
    else:
        loss, solution = losses.loss, losses.solution
    assert model.slot_loss({"image": image}, solution.z).item() == pytest.approx(loss.item(), rel=1e-5)


def test_views_are_images_and_masks_in_the_image_s_size(model):
    image, slots_init = random_images(), model.sample_slots(2).detach()
    views = model.views(image, slots_init)
    assert (model.ceiling(image) is None) != isinstance(model, SLATE)
    for picture in (views.reconstruction, *[model.ceiling(image)] * isinstance(model, SLATE)):
        assert picture.shape == image.shape and picture.min() >= 0 and picture.max() <= 1
    assert views.masks.shape == (2, 3, 16, 16) and not views.masks.requires_grad
    torch.testing.assert_close(views.masks.sum(1), torch.ones(2, 16, 16))
    assert torch.equal(model.segment(image, slots_init), views.masks)


def test_slate_s_ceiling_is_its_dvae_and_the_cross_entropy_is_that_of_each_image():
    model, image = SLATE(**SLATE_SIZES).eval(), random_images()
    slots_init, tokens = model.sample_slots(2).detach(), model.tokenize(image)
    assert torch.equal(model.ceiling(image), model.render(tokens))
    alone = [model.predict(tokens[i : i + 1], slots_init[i : i + 1]).cross_entropy for i in range(2)]
    torch.testing.assert_close(model.views(image, slots_init).cross_entropy, torch.stack(alone))


def test_the_masks_of_slate_are_its_attention_over_tokens_row_by_row():
    model, image = SLATE(**SLATE_SIZES).eval(), random_images()
    slots_init = model.sample_slots(2).detach()
    _, attention = model.encode(model.tokenize(image), slots_init)  # (B, 16 tokens, K)
    masks = model.views(image, slots_init).masks.unflatten(-2, (4, 4)).unflatten(-1, (4, 4))  # (B, K, y, 4, x, 4)
    expected = attention.mT.unflatten(-1, (4, 4))[:, :, :, None, :, None]
    torch.testing.assert_close(masks, expected.expand_as(masks))
