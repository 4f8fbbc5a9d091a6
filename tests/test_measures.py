"""The table of measures: how a run is summarised, and that the docs agree."""

import math
from pathlib import Path

import pytest

from implicit_slate.measures import COLUMNS, LOGGED, column_name, docs_table, final_loss, headline_columns, summarise


def test_last_and_largest():
    measures = summarise({"jacobian/spectral_norm": {0: 1.0, 10: 5.0, 20: 2.0}, "val/mse": {10: 3.0, 20: math.inf}})
    assert measures["jacobian/spectral_norm_final"] == 2.0 and measures["jacobian/spectral_norm_max"] == 5.0
    assert measures["val/mse"] is None and measures["evaluations"] is None
    assert list(measures) == list(COLUMNS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1])
def test_what_is_not_finite_is_null_wherever_it_stands(bad, at):
    assert summarise({"grad_norm": {0: 1.0, 1: 1.0} | {at: bad}})["grad_norm_max"] is None


def test_the_final_loss_is_the_cross_entropy_or_without_one_the_mse_or_without_images_the_loss():
    assert final_loss({"val/cross_entropy": 3.0, "val/mse": 1.0, "val/loss": 4.0}) == 3.0
    assert final_loss({"val/cross_entropy": None, "val/mse": 1.0, "val/loss": 2.0}) == 1.0
    assert final_loss({"val/cross_entropy": None, "val/mse": None, "val/loss": 0.0}) == 0.0
    assert final_loss({}) is None


def test_names_and_headlines():
    assert column_name("val/cross_entropy") == "validation cross-entropy"
    assert column_name("jacobian/spectral_norm_max") == "largest spectral norm"
    assert headline_columns()[:2] == ["val/cross_entropy", "jacobian/spectral_norm_final"]
    assert len({measure.name for measure in LOGGED.values()}) == len(LOGGED)


def test_the_docs_have_the_table():
    assert docs_table() in (Path(__file__).parents[1] / "docs" / "measures.md").read_text()
