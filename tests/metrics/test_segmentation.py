"""ARI, FG-ARI and mBO compared with scikit-learn and torchmetrics, and on cases computed by hand."""

import itertools

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torchmetrics.functional.clustering import adjusted_rand_score as torchmetrics_ari

from implicit_slate.metrics import adjusted_rand_index, best_overlaps, segments
from implicit_slate.metrics.segmentation import agreement, bound


def random_maps(num_truth, num_predicted, shape=(6, 12, 12)):
    """Maps that partly agree: half of the predicted pixels have the true label."""
    generator = torch.Generator().manual_seed(num_truth)
    truth = torch.randint(num_truth, shape, generator=generator)
    predicted = torch.randint(num_predicted, shape, generator=generator)
    return truth, torch.where(torch.rand(shape, generator=generator) < 0.5, truth % num_predicted, predicted)


@pytest.mark.parametrize(("num_truth", "num_predicted"), [(2, 2), (5, 7), (11, 3), (100, 100)])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_ari_is_scikit_learn_s_and_torchmetrics_s(num_truth, num_predicted):
    truth, predicted = random_maps(num_truth, num_predicted)
    scores = adjusted_rand_index(truth, predicted, foreground_only=False)
    assert scores.shape == (6,) and scores.dtype == torch.float64
    for score, t, p in zip(scores, truth, predicted):
        assert score.item() == pytest.approx(adjusted_rand_score(t.flatten(), p.flatten()), abs=1e-12)
        assert score.item() == pytest.approx(torchmetrics_ari(p.flatten(), t.flatten()).item(), abs=1e-5)


def assert_fg_ari_is_scikit_learn_s(truth, predicted):
    scores = adjusted_rand_index(truth, predicted, foreground_only=True)
    for score, t, p in zip(scores, truth, predicted):
        assert score.item() == pytest.approx(adjusted_rand_score(t[t > 0], p[t > 0]), abs=1e-12)
    return scores


def test_fg_ari_is_that_of_the_foreground_alone():
    truth, predicted = random_maps(5, 7)
    scores = assert_fg_ari_is_scikit_learn_s(truth, predicted)
    assert not torch.allclose(scores, adjusted_rand_index(truth, predicted, foreground_only=False), atol=1e-3)


ONE, SINGLES, HALVES = [3, 3, 3, 3], [4, 2, 1, 3], [1, 1, 2, 2]


@pytest.mark.parametrize("truth", [ONE, SINGLES, HALVES])
@pytest.mark.parametrize("predicted", [ONE, SINGLES, HALVES])
@pytest.mark.parametrize("foreground_only", [False, True])
def test_degenerate_partitions_score_as_in_scikit_learn(truth, predicted, foreground_only):
    score = adjusted_rand_index(torch.tensor([truth]), torch.tensor([predicted]), foreground_only)
    assert score.item() == adjusted_rand_score(truth, predicted)
    assert score.item() == (1.0 if truth == predicted else 0.0)


def test_one_pixel_is_a_perfect_score_and_none_is_nan():
    truth = torch.tensor([[0, 0, 5], [0, 0, 0]])
    predicted = torch.tensor([[0, 1, 2], [0, 1, 2]])
    scores = adjusted_rand_index(truth, predicted, foreground_only=True)
    assert scores[0] == 1 and scores[1].isnan()
    assert adjusted_rand_index(truth, predicted, foreground_only=False).isfinite().all()


def test_agreement_by_chance_is_zero_on_average_and_less_than_chance_negative():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(4, (2, 400, 64), generator=generator)
    assert adjusted_rand_index(truth, predicted, foreground_only=False).mean().abs() < 5e-3
    crossed = adjusted_rand_index(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 0, 1]]), foreground_only=False)
    assert crossed.item() == pytest.approx(-0.5)


def renamed(labels, names):
    return torch.tensor(names)[labels]


@pytest.mark.parametrize("names", [[3, 0, 4, 1, 2], [1_000_000_000_000, 7, 0, 255, 256]])
@pytest.mark.parametrize("foreground_only", [False, True])
def test_names_of_segments_do_not_matter(names, foreground_only):
    truth, predicted = random_maps(5, 5)
    expected = adjusted_rand_index(truth, predicted, foreground_only), *best_overlaps(truth, predicted)
    predicted = renamed(predicted, names)
    actual = adjusted_rand_index(truth, predicted, foreground_only), *best_overlaps(truth, predicted)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("names", [[0, 900, 3, 500_000_000, 256], [300, 900, 3, 500_000_000, 256]])
def test_large_true_labels_leave_the_background_in_its_place(names):
    truth, predicted = random_maps(5, 5)
    truth = renamed(truth, names)
    assert_fg_ari_is_scikit_learn_s(truth, predicted)
    assert best_overlaps(truth, predicted)[1].tolist() == [sum(name > 0 for name in names)] * 6


def test_a_large_image_s_pairs_are_counted_exactly():
    """With nearly 10^11 pairs, float32 would be wrong in the fifth digit."""
    truth = (torch.arange(512 * 512) // 1000).view(1, 512, 512)
    predicted = truth.clone()
    predicted[0, 0, :500] = 7
    expected = adjusted_rand_score(truth.flatten(), predicted.flatten())
    assert adjusted_rand_index(truth, predicted, foreground_only=False).item() == pytest.approx(expected, abs=1e-12)


def brute_force_overlaps(truth, predicted):
    best = []
    for label in truth[truth > 0].unique():
        t = truth == label
        best.append(max(float((t & (predicted == p)).sum() / (t | (predicted == p)).sum()) for p in predicted.unique()))
    return sum(best), len(best)


def test_best_overlaps_are_those_of_sets_of_pixels():
    truth, predicted = random_maps(6, 4)
    truth[0] = truth[0].clamp(max=2)  # fewer objects than in the other images
    sums, counts = best_overlaps(truth, predicted)
    expected = [brute_force_overlaps(t, p) for t, p in zip(truth, predicted)]
    assert sums.tolist() == pytest.approx([total for total, _ in expected], rel=1e-6)
    assert counts.tolist() == [number for _, number in expected] == [2, 5, 5, 5, 5, 5]


def test_best_overlaps_by_hand():
    truth = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2]])
    whole, split, one = torch.tensor([[[5, 5, 7, 7, 0, 0, 0, 0]], [[5, 5, 7, 7, 0, 0, 0, 6]], [[0] * 8]])
    assert [x.item() for x in best_overlaps(truth, whole)] == [2.0, 2.0]  # a predicted 0 is an ordinary segment
    assert [x.item() for x in best_overlaps(truth, split)] == [1 + 3 / 4, 2.0]
    assert [x.item() for x in best_overlaps(truth, one)] == [2 / 8 + 4 / 8, 2.0]  # the union includes background
    assert [x.item() for x in best_overlaps(0 * truth, split)] == [0, 0]  # no objects


def test_the_bound_by_hand():
    truth = torch.tensor([[[1, 0, 0, 0], [0, 0, 0, 2], [1, 1, 3, 3], [1, 1, 2, 3]]])
    found = {name: value.item() for name, value in bound(truth, 2).items()}
    # The objects of the cells are 1, 2, 1 and 3; one foreground pixel, in the last cell, is wrong.
    foreground, best = [1, 2, 1, 1, 3, 3, 1, 1, 2, 3], [1, 2, 1, 1, 3, 3, 1, 1, 3, 3]
    assert found["fg_ari"] == pytest.approx(adjusted_rand_score(foreground, best))
    # Object 1 without the first cell, 2 with both of its cells, 3 with the last.
    assert found["overlap"] == pytest.approx(4 / 5 + 2 / 8 + 3 / 4) and found["objects"] == 3
    assert {name: value.item() for name, value in bound(truth, 4).items()} == {"fg_ari": 1, "overlap": 3, "objects": 3}
    nothing = bound(0 * truth, 2)
    assert nothing["fg_ari"].isnan() and nothing["overlap"] == nothing["objects"] == 0


def test_no_map_of_cells_is_better_than_the_bound():
    truth = torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 0], [0, 2, 2, 2], [3, 3, 2, 2]]])
    best = bound(truth, 2)
    for labels in itertools.product(range(4), repeat=4):
        cells = torch.tensor(labels).view(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1).expand_as(truth)
        for name, value in best.items():
            assert (agreement(truth, cells)[name] <= value + 1e-12).all()
    assert (best["fg_ari"] < 1).all() and (best["overlap"] < 3).all()


def test_segments_are_the_slots_that_win():
    masks = torch.tensor([[[0.2, 0.5]], [[0.7, 0.1]], [[0.1, 0.4]]])[None]  # 3 slots of 1 × 2 pixels
    assert segments(masks).tolist() == [[[1, 0]]]
    assert segments(torch.rand(2, 5, 8, 6)).shape == (2, 8, 6)
    assert segments(torch.tensor([0.2, 0.4, 0.4]).view(1, 3, 1, 1)).item() == 1  # the first of equal ones


@pytest.mark.parametrize("measure", [lambda *maps: adjusted_rand_index(*maps, foreground_only=True), best_overlaps])
def test_maps_that_do_not_fit_are_refused(measure):
    with pytest.raises(ValueError, match=r"truth \(1, 4\) and predicted \(1, 5\)"):
        measure(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="predicted: label -1 is negative"):
        measure(torch.zeros(1, 4, dtype=torch.long), torch.tensor([[0, 1, -1, 2]]))
