"""Average precision of predicted objects: small cases by hand, and comparison with a loop over detections."""

import math

import pytest
import torch

from implicit_slate.metrics.set_prediction import THRESHOLDS, PropertyAveragePrecision


def thing(x=0.0, y=0.0, color=0, confidence=1.0):
    """A row of properties: a large rubber cube of the given colour at (x, y, 0.7) in the scene."""
    row = torch.zeros(19)
    row[:3] = (torch.tensor([x, y, 0.7]) + 3) / 6
    row[[3, 6, 8, 10 + color]] = 1
    row[-1] = confidence
    return row


def scene(*things, rows=3):
    return torch.stack([*things, *[torch.zeros(19)] * (rows - len(things))])


def average_precision(*images):
    """The average precision over images, each given as (predictions, truth)."""
    metric = PropertyAveragePrecision()
    metric.update(*(torch.stack(part) for part in zip(*images)))
    values = metric.compute()
    assert list(values) == ["ap_inf", "ap_1", "ap_0.5", "ap_0.25", "ap_0.125"]
    return [value.item() for value in values.values()]


TRUTH = scene(thing(0, 0, 0), thing(2, 0, 1))


def random_batch(seed, images=20, slots=5, rows=4):
    """1 to `rows` true objects of two kinds, and nearby predictions, many of which compete for the same object."""
    generator = torch.Generator().manual_seed(seed)

    def number(*sizes):
        return torch.rand(*sizes, generator=generator).tolist()

    truth, predictions = [], []
    for _ in range(images):
        count = int(torch.randint(1, rows + 1, (), generator=generator))
        things = [thing(4 * x - 2, 4 * y - 2, int(c < 0.5)) for x, y, c in number(count, 3)]
        truth.append(scene(*things, rows=rows))
        made = []
        for which, x, y, c, confidence in number(slots, 5):
            row = things[int(which * count)].clone()
            row[:2] += torch.tensor([x - 0.5, y - 0.5]) / 9
            row[3:-1] += 0.4 * torch.rand(15, generator=generator)
            row[10:12] = row[10:12].flip(0) if c < 0.2 else row[10:12]
            row[-1] = confidence
            made.append(row)
        predictions.append(torch.stack(made))
    return torch.stack(predictions), torch.stack(truth)


def test_the_truth_is_perfect_nothing_is_zero_and_without_objects_it_is_undefined():
    _, truth = random_batch(0)
    assert average_precision(*zip(truth, truth)) == pytest.approx([1] * 5)
    assert average_precision((torch.zeros(3, 19), scene(thing(color=1)))) == [0] * 5
    assert all(map(math.isnan, average_precision((scene(thing()), torch.zeros(3, 19)))))


def test_distance_decides():
    """Both objects are found, one at its position and the other 0.3 too far right."""
    close = scene(thing(0.3, 0, 0, 0.9), thing(2, 0, 1, 0.8), thing(0, 0, 5, 0.1))
    # At 0.25 the first detection is wrong: precision is 1/2 as recall rises from 0 to 1/2, where it ends.
    assert average_precision((close, TRUTH)) == pytest.approx([1, 1, 1, 0.25, 0.25])


def test_a_distance_is_one_in_three_dimensions():
    away = thing(0, 0, 0)
    away[:3] += torch.tensor([2.0, 3.0, 6.0]) / 70 / 6 * 7  # 0.7 long
    assert average_precision((scene(away, rows=1), scene(thing()))) == pytest.approx([1, 1, 0, 0, 0])


def test_every_attribute_must_agree():
    for column in (4, 7, 9, 12):  # another shape, size, material, colour
        row = thing()
        row[column] = 2
        assert average_precision((scene(row, rows=1), scene(thing()))) == [0] * 5


def test_a_second_detection_of_an_object_is_wrong():
    twice = scene(thing(0, 0, 0, 0.9), thing(0.01, 0, 0, 0.8), thing(2, 0, 1, 0.7))
    # right, wrong, right: precision 1 up to recall 1/2, and 2/3 from there to 1.
    assert average_precision((twice, TRUTH)) == pytest.approx([0.5 + 0.5 * 2 / 3] * 5)


def test_the_nearest_object_counts_even_if_it_is_taken():
    """As in the original metric, a detection does not fall back to the second nearest object."""
    truth = scene(thing(0, 0), thing(0.4, 0))
    both_left = scene(thing(0, 0, 0, 0.9), thing(0.1, 0, 0, 0.8))
    assert average_precision((both_left, truth)) == pytest.approx([0.5] * 5)


def test_confidence_orders_detections_over_all_images():
    sure_and_wrong = (scene(thing(0, 0, 3, 0.9), rows=1), scene(thing(), rows=1))
    unsure_and_right = (scene(thing(0, 0, 0, 0.2), rows=1), scene(thing(), rows=1))
    assert average_precision(sure_and_wrong, unsure_and_right) == pytest.approx([0.25] * 5)
    sure_and_wrong[0][0, -1] = 0.1
    assert average_precision(sure_and_wrong, unsure_and_right) == pytest.approx([0.5] * 5)


def slow_average_precision(predictions, truth, threshold):
    """The same metric, computed one detection at a time over the whole set."""
    detections = [(row, image) for image, rows in enumerate(predictions) for row in rows]
    taken, right = set(), []
    for row, image in sorted(detections, key=lambda detection: -detection[0][-1].item()):
        options = [
            ((6 * (row[:3] - other[:3])).norm().item(), number)
            for number, other in enumerate(truth[image])
            if other[-1] == 1
            and all(row[a:b].argmax() == other[a:b].argmax() for a, b in ((3, 6), (6, 8), (8, 10), (10, 18)))
        ]
        distance, number = min(options, default=(math.inf, None))
        right.append(number is not None and distance < threshold and (image, number) not in taken)
        if right[-1]:
            taken.add((image, number))
    total, area = truth[..., -1].sum().item(), 0.0
    precisions = [sum(right[: i + 1]) / (i + 1) for i in range(len(right))]
    for i, is_right in enumerate(right):
        if is_right:
            area += max(precisions[i:]) / total
    return area


@pytest.mark.parametrize("seed", range(4))
def test_the_rule_in_plain_loops_gives_the_same(seed):
    predictions, truth = random_batch(seed)
    expected = [slow_average_precision(predictions, truth, threshold) for threshold in THRESHOLDS]
    found = average_precision(*zip(predictions, truth))
    assert found == pytest.approx(expected, abs=1e-6) and 0.02 < found[-1] < found[0] < 0.95
    assert average_precision(*zip(predictions.flip(1), truth.flip(1))) == pytest.approx(found)  # in any order


def test_batches_and_processes_add_up():
    predictions, truth = random_batch(7)
    whole, first, second = (PropertyAveragePrecision() for _ in range(3))
    whole.update(predictions, truth)
    first.update(predictions[:6], truth[:6])
    second.update(predictions[6:15], truth[6:15])
    second.update(predictions[15:], truth[15:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())
    assert {name: whole._reductions[name].__name__ for name in whole._reductions} == {
        "confidence": "dim_zero_cat",
        "right": "dim_zero_cat",
        "num_objects": "dim_zero_sum",
    }
    whole.reset()
    whole.update(truth, truth)
    assert whole.compute()["ap_1"] == pytest.approx(1)
