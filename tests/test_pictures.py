"""Pictures of slot masks as coloured segments, and of the same images through several models."""

import numpy as np
import pytest
import torch
from PIL import ImageColor

from implicit_slate.pictures import (
    GAP,
    GROUP_GAP,
    SEGMENT_COLORS,
    Group,
    colored_segments,
    compare,
    draw,
    panels_npz,
    read_panels,
)

COLORS = [np.array(ImageColor.getrgb(color)) / 255 for color in SEGMENT_COLORS]


def pieces(*sizes: int) -> torch.Tensor:
    """Masks (1, K, 8, 8) in which slot k covers the next `sizes[k]` rows by itself."""
    return torch.eye(len(sizes)).repeat_interleave(torch.tensor(sizes), 1)[None, :, :, None].expand(-1, -1, -1, 8)


def test_the_slot_with_the_largest_mask_has_the_first_colour_and_every_slot_its_own():
    black = torch.zeros(1, 3, 8, 8)
    found = colored_segments(black, pieces(3, 1, 4))
    assert found.shape == (1, 3, 8, 8) and found.dtype == np.float32
    for row, rank in ((0, 1), (3, 2), (7, 0)):
        assert found[0, :, row, 5] == pytest.approx(0.75 * COLORS[rank], abs=1e-6)
    assert len(set(SEGMENT_COLORS)) == 12


def test_the_image_shines_through_and_colours_fade_where_slots_share_a_pixel():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1.0
    alone, shared = colored_segments(image, pieces(8, 0)), colored_segments(image, torch.full((1, 2, 8, 8), 0.5))
    assert (alone[..., 7] - alone[..., 0]).ravel() == pytest.approx(0.25, abs=1e-6)
    assert shared[..., 0].ravel() == pytest.approx(0.75 * 0.15, abs=1e-6)


def test_one_slot_and_more_slots_than_colours():
    found = colored_segments(np.zeros((2, 3, 4, 4)), np.ones((2, 1, 4, 4)))
    assert found[1, :, 0, 0] == pytest.approx(0.75 * COLORS[0])
    many = torch.eye(16).reshape(1, 16, 4, 4)
    assert len(np.unique(colored_segments(torch.zeros(1, 3, 4, 4), many).reshape(3, -1), axis=1).T) == 12


def test_models_are_compared_on_the_same_images_each_under_its_title():
    truth, red = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    red[:, 0] = 1.0
    masks = pieces(4, 4).expand(2, -1, -1, -1)
    groups = [Group("a", ["one", "two"], "#0000ff", red, masks), Group("b", [], "#ff0000", truth, masks)]
    picture = compare(truth, groups)
    assert picture.width == 5 * 160 + 2 * (GAP + GROUP_GAP + GAP) and picture.width < 1200
    pixels = np.asarray(picture)
    middle, lefts = -90, [GAP + 160 * i + gap for i, gap in enumerate((0, 28, 32, 60, 64))]
    assert [tuple(pixels[middle, left + 80]) for left in lefts[:2]] == [(0, 0, 0), (255, 0, 0)]
    assert tuple(pixels[middle, lefts[3] + 80]) == (0, 0, 0)
    assert (pixels[middle, lefts[2]] == pixels[middle, lefts[4]]).all()
    for group, (left, right) in zip(groups, ((lefts[1], lefts[3]), (lefts[3], picture.width))):
        written = pixels[:34, left:right].min((0, 1))
        assert (written < 100).tolist() == [group.color[i : i + 2] == "00" for i in (1, 3, 5)]
    assert (pixels[:34, : lefts[1]] == 255).all(), "nothing is written above the truth's title"
    assert draw(truth, red, masks).size == (3 * 160 + GAP + GROUP_GAP + 2 * GAP, picture.height - 42 - 2 * 18)


@pytest.mark.parametrize("side", [64, 100])
def test_lines_stay_above_their_own_images_however_long_they_are(side):
    image = torch.zeros(1, 3, side, side)
    picture = compare(image, [Group("a", ["FG-ARI 0.0772 | " * 9], "#0000ff", image, image) for _ in range(2)])
    columns, side = np.asarray(picture)[:60].min((0, 2)), (picture.width - 2 * GROUP_GAP - 4 * GAP) // 5
    starts = [GAP + side + GROUP_GAP, GAP + side + GROUP_GAP + 2 * side + GAP + GROUP_GAP]
    for start in starts:
        assert (columns[start - GROUP_GAP : start] == 255).all() and (columns[start : start + 2 * side] < 255).any()
    assert (columns[-GAP:] == 255).all()


def test_arrays_come_back_from_their_file(tmp_path):
    torch.manual_seed(0)
    image, masks = torch.rand(2, 3, 8, 8), torch.rand(2, 4, 8, 8).softmax(1)
    (tmp_path / "panels.npz").write_bytes(panels_npz(image, 1 - image, masks, None))
    for found, given in zip(read_panels(tmp_path / "panels.npz"), (image, 1 - image, masks)):
        assert np.abs(found - given.numpy()).max() <= 0.5 / 255 + 1e-6
