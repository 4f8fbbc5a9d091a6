"""`result.json` from event files."""

import json
import math

import pytest
from torch.utils.tensorboard import SummaryWriter

from implicit_slate.ablation.result import final_loss, read_scalars, summarise, write_result
from implicit_slate.ablation.run_folder import MEASURES


def write_events(folder, suffix, points):
    with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
        for step, value in points:
            writer.add_scalar("grad_norm", value, step)


def test_a_later_file_holds(tmp_path, monkeypatch):
    write_events(tmp_path, ".a", [(10, 1.0), (20, 2.0), (30, 3.0)])
    monkeypatch.setattr("time.time", lambda: 4e9)
    write_events(tmp_path, ".b", [(30, 5.0), (40, 4.0)])
    assert read_scalars(tmp_path)["grad_norm"] == {10: 1.0, 20: 2.0, 30: 5.0, 40: 4.0}


def test_a_file_cut_off_in_the_middle_of_an_event_counts_up_to_there(tmp_path):
    write_events(tmp_path, ".a", [(step, float(step)) for step in range(20)])
    [file] = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:-10])
    assert list(read_scalars(tmp_path)["grad_norm"]) == list(range(19))


def test_last_and_largest():
    measures = summarise({"jacobian/spectral_norm": {0: 1.0, 10: 5.0, 20: 2.0}, "val/mse": {10: 3.0, 20: math.inf}})
    assert measures["jacobian/spectral_norm_final"] == 2.0 and measures["jacobian/spectral_norm_max"] == 5.0
    assert measures["val/mse"] is None and measures["evaluations"] is None


def test_how_slots_and_properties_ended_is_in_the_row_and_null_where_it_was_not_measured():
    row = summarise({"slots/in_use": {0: 6.0, 100: 2.5}, "slots/attention_entropy": {0: 0.9}, "val/ap_0.5": {50: 0.25}})
    assert (row["slots/in_use_final"], row["slots/attention_entropy_final"], row["val/ap_0.5"]) == (2.5, 0.9, 0.25)
    assert row["slots/fg_ari_final"] is row["slots/information_final"] is row["val/ap_inf"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_null_wherever_it_stands(bad):
    for values in ([bad, 1.0], [1.0, bad]):
        assert summarise({"grad_norm": dict(enumerate(values))})["grad_norm_max"] is None


def test_a_result_is_a_row(tmp_path):
    (tmp_path / "cell.json").write_text(json.dumps({"cell": "clip=on,seed=0", "axes": {"clip": "on", "seed": 0}}))
    write_events(tmp_path, "", [(10, 7.0)])
    write_result(tmp_path, "complete", step=100, seconds=50.0)
    row = json.loads((tmp_path / "result.json").read_text())
    assert tuple(row) == ("cell", "status", "clip", "seed", *MEASURES)
    assert (row["grad_norm_max"], row["steps_per_second"], row["step"]) == (7.0, 2.0, 100)
    assert row["versions"]["torch"]


def test_the_final_loss_is_the_cross_entropy_or_without_one_the_mse_or_without_images_the_loss():
    assert final_loss({"val/cross_entropy": 3.0, "val/mse": 1.0, "val/loss": 4.0}) == 3.0
    assert final_loss({"val/cross_entropy": None, "val/mse": 1.0, "val/loss": 2.0}) == 1.0
    assert final_loss({"val/cross_entropy": None, "val/mse": None, "val/loss": 0.0}) == 0.0
    assert final_loss({}) is None
