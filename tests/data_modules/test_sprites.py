"""Sprites match their options, and depend on nothing else."""

import numpy as np
import pytest
import torch

from data_modules import Sprites
from data_modules.sprites import COLOURS, COMBINATIONS, GROUND, HELD_OUT, SHAPES, Scenes, paint, place_objects
from implicit_slate.errors import UserError


def load(**options):
    data = Sprites(**{"num_images": (60, 20, 30), "properties": True} | options)
    data.setup()
    return data.splits


def everything(images):
    return images[list(range(len(images)))]


def combinations(batch) -> set[tuple[int, int]]:
    rows = batch["properties"][batch["properties"][..., -1] > 0.5]
    return set(zip(rows[:, 3:6].argmax(-1).tolist(), rows[:, 10:18].argmax(-1).tolist()))


def test_images_and_masks():
    splits = load()
    assert [len(part) for part in splits] == [60, 20, 30]
    batch = everything(splits.train)
    assert batch["image"].shape == (60, 3, 32, 32) and batch["mask"].shape == (60, 32, 32)
    counts = batch["mask"].flatten(1).amax(1)
    assert counts.min() >= 1 and counts.max() == 4
    ground = torch.tensor(GROUND) / 255
    outside = (batch["mask"] == 0) & (torch.nn.functional.max_pool2d((batch["mask"] > 0).float(), 5, 1, 2) == 0)
    assert torch.allclose(batch["image"].movedim(1, -1)[outside], ground.expand(int(outside.sum()), 3))


def test_an_image_is_a_function_of_its_number_and_the_seed():
    few, many, other = load().train, load(num_images=(90, 20, 30)).train, load(data_seed=1).train
    indices = [3, 59]
    assert torch.equal(few[indices]["image"], many[indices]["image"])
    assert not torch.equal(few[indices]["image"], other[indices]["image"])
    assert not torch.equal(load().train[[0, 1]]["image"], load().test[[0, 1]]["image"])


def test_the_size_of_the_picture_does_not_change_the_scene():
    small, large = everything(load().val), everything(load(image_size=64).val)
    assert torch.equal(small["properties"], large["properties"])
    shrunk = torch.nn.functional.avg_pool2d(large["image"], 2)
    assert (shrunk - small["image"]).abs().mean() < 0.0015  # with all edges antialiased alike


def test_objects_lie_apart_or_overlap():
    apart, over = everything(load().train), everything(load(overlap=True, num_objects=(4, 4), size=(0.5, 0.6)).train)
    areas = {name: (data["mask"].flatten(1)[..., None] == torch.arange(1, 5)).sum(1) for name, data in
             {"apart": apart, "over": over}.items()}  # fmt: skip
    real = apart["properties"][..., -1] > 0.5
    assert (areas["apart"][real] > 25).all()  # half of the smallest square, so no object is hidden
    assert (areas["over"][:, 3] > areas["over"][:, 0]).float().mean() > 0.6  # the last one is in front


def test_every_number_of_objects_is_as_frequent():
    placed = place_objects(np.random.default_rng(0), 3000, COMBINATIONS, (2, 4), (0.1, 0.2), overlap=True)
    frequencies = np.bincount(placed.present.sum(1), minlength=5) / 3000
    assert np.abs(frequencies - [0, 0, 1 / 3, 1 / 3, 1 / 3]).max() < 0.03


def test_bounding_squares_do_not_overlap_unless_they_may():
    def overlapping(overlap):
        placed = place_objects(np.random.default_rng(0), 300, COMBINATIONS, (3, 3), (0.3, 0.4), overlap)
        offset = np.abs(placed.centre[:, :, None] - placed.centre[:, None]).max(-1)
        near = offset < (placed.width[:, :, None] + placed.width[:, None]) / 2
        return (near & placed.present[:, :, None] & placed.present[:, None] & ~np.eye(3, dtype=bool)).any()

    assert overlapping(True) and not overlapping(False)


def test_no_object_is_left_out_where_there_is_room():
    batch = everything(load(num_objects=(3, 3), size=(0.2, 0.2)).train)
    assert (batch["properties"][..., -1].sum(1) == 3).all()


def test_properties_say_where_an_object_is():
    batch = everything(load(num_objects=(1, 1)).train)
    for mask, image, rows in zip(batch["mask"], batch["image"], batch["properties"]):
        (row,) = rows
        y, x = torch.nonzero(mask == 1, as_tuple=True)
        middle = torch.stack([x.min() + x.max(), y.min() + y.max()]) / 2 + 0.5
        assert (middle / 32 - row[:2]).abs().max() < 1 / 32
        colour = list(COLOURS.values())[int(row[10:18].argmax())]
        assert (image[:, mask == 1].mode(1).values - torch.tensor(colour) / 255).abs().max() < 1e-6
        share = (mask == 1).sum() / (x.max() - x.min() + 1) / (y.max() - y.min() + 1)
        expected = {"disc": np.pi / 4, "square": 1.0, "triangle": 0.5}[SHAPES[int(row[3:6].argmax())]]
        assert abs(share - expected) < 0.15
        assert row[6:8].argmax() == int(y.max() - y.min() > 0.325 * 32) or abs(y.max() - y.min() - 9.4) < 2


def test_edges_are_smooth():
    one = np.ones((1, 1))
    scene = Scenes(
        one > 0, one.astype(int), (0 * one).astype(int), 0.5 * one, np.full((1, 1, 2), 0.51), np.zeros((1, 3, 3))
    )
    image, _ = paint(scene, 32, stripes=False)
    red = image[0, 16, :, 0]
    assert len(set(red.tolist())) == 4  # background, object, and two partly covered pixels at its sides


def test_stripes_are_ground():
    one = {"num_objects": (1, 1)}
    plain, striped = everything(load(**one).train), everything(load(ground="stripes", **one).train)
    assert torch.equal(plain["mask"], striped["mask"])
    ground = torch.nn.functional.pad((plain["mask"] == 0).float(), (2, 2, 2, 2), value=1.0)
    inside = torch.nn.functional.max_pool2d(ground, 5, 1) == 0  # away from smooth edges
    assert torch.equal(plain["image"].movedim(1, -1)[inside], striped["image"].movedim(1, -1)[inside])
    assert striped["image"].movedim(1, -1)[plain["mask"] == 0].std() > 0.03


def test_held_out_combinations():
    held_out = set(map(tuple, COMBINATIONS[HELD_OUT].tolist()))
    assert len(held_out) == 6 and {shape for shape, _ in held_out} == {0, 1, 2}
    number = {"num_images": (400, 200, 200)}
    seen, unseen = load(combinations="seen", **number), load(combinations="unseen", **number)
    for splits in (seen, unseen):
        assert not combinations(everything(splits.train)) & held_out
        assert not combinations(everything(splits.val)) & held_out
    assert not combinations(everything(seen.test)) & held_out
    assert combinations(everything(unseen.test)) == held_out
    assert combinations(everything(load(**number).train)) == set(map(tuple, COMBINATIONS.tolist()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_images": (10**9, 1, 1)}, "Unable to allocate 1.23 TiB"),
        ({"image_size": 2 * 10**6, "num_images": (1000, 1, 1)}, "Unable to allocate"),
        ({"num_images": (10**18, 1, 1)}, "array is too big"),
    ],
)
def test_what_does_not_fit_into_memory_is_said_in_a_line(options, reason):
    with pytest.raises(UserError, match=f"image_size=.*: so many pixels do not fit into memory .{reason}"):
        load(**options)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"num_objects": (0, 3)}, "num_objects"),
        ({"num_objects": (4, 3)}, "num_objects"),
        ({"num_objects": (1, 256)}, "num_objects=.1, 256.: a mask of bytes has at most 255"),
        ({"size": (0.0, 0.3)}, "size"),
        ({"size": (0.5, 1.0)}, "size"),
        ({"size": (float("nan"), 0.3)}, "size"),
        ({"ground": "grass"}, "ground"),
        ({"combinations": "some"}, "combinations"),
        ({"num_images": (10, 0, 10)}, "num_images"),
        ({"data_seed": -1}, "data_seed"),
        ({"image_size": 30}, "image_size"),
    ],
)
def test_wrong_options(options, key):
    with pytest.raises(UserError, match=key):
        Sprites(**options)
