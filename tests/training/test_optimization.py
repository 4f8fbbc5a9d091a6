import pytest

from implicit_slate.errors import UserError
from implicit_slate.training.optimization import Optimization, Plateau, cosine


@pytest.mark.parametrize(("step", "expected"), [(0, 0.01), (1, 0.02), (49, 0.5), (99, 1.0), (100, 1.0), (10_000, 1.0)])
def test_warmup_is_linear_and_ends_at_one(step, expected):
    assert Optimization(warmup_steps=100, decay=None).main_factor(step) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (250, 0.5), (500, 0.25), (125, 0.5**0.5)])
def test_half_life(step, expected):
    settings = Optimization(warmup_steps=None, decay="half_life", half_life=250)
    assert settings.main_factor(step) == pytest.approx(expected)


def test_tricks_that_are_off_leave_the_rate_alone():
    assert Optimization(warmup_steps=None, decay=None).main_factor(0) == 1
    assert Optimization(warmup_steps=None, decay="plateau").main_factor(10**6) == 1


def test_plateau_halves_after_four_validations_without_a_better_loss():
    plateau, factors = Plateau(patience=4), []
    for loss in [5, 4, 4, 4, 4, 4, 3, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5]:
        plateau.update(loss)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (15_000, 0.55), (30_000, 0.1), (99_999, 0.1)])
def test_temperature(step, expected):
    assert cosine(step, 1.0, 0.1, 30_000) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["clip_norm", "warmup_steps", "learning_rate", "half_life", "patience"])
def test_a_setting_that_is_not_positive_is_refused_by_name(name):
    with pytest.raises(UserError, match=name):
        Optimization(**{name: -1})
