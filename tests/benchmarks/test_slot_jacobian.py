"""The callback is measured at all, and the demonstration's settings are found in its file."""

import pytest

from benchmarks import slot_jacobian


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_a_step_and_a_measurement_take_time(gradient):
    experiment = slot_jacobian.demonstration(gradient)
    assert experiment.settings["image_size"] == 32 and experiment.own_cadence > 0
    step, measurement = slot_jacobian.measure(experiment._replace(steps=4, every_n_steps=2), batch_size=2)
    assert 0 < step < 10 and 0 < measurement < 10


def test_the_images_of_the_benchmark_are_images():
    images = slot_jacobian.Squares(16, num_images=5, batch_size=2)
    batch = next(iter(images.train_dataloader()))["image"]
    assert batch.shape == (2, 3, 16, 16) and 0 <= batch.min() < batch.max() <= 1
    assert images.probe(3)["image"].shape == (3, 3, 16, 16)
