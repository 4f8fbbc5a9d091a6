"""`implicit-slate fixed-points`: on a refinement with a known fixed point, and through the command line."""

import io

import pandas as pd
import pytest
import torch

from implicit_slate.cli import main
from implicit_slate.evaluation import fixed_points
from implicit_slate.evaluation.fixed_points import MODES, diagnose
from implicit_slate.models import SLATE
from tests.tiny import SLATE_SIZES, TinyImages


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SLATE(**SLATE_SIZES).requires_grad_().eval()


def found(model):
    generator = torch.Generator().manual_seed(0)
    return diagnose(model, TinyImages().probe(3), model.sample_slots(3, generator).detach())


def test_where_the_slots_do_not_depend_on_those_before_all_modes_are_exact(model):
    attention = model.slot_attention
    with torch.no_grad():
        attention.project_q.weight.zero_()
        attention.gru.weight_hh.zero_()
        attention.gru.bias_ih[SLATE_SIZES["slot_size"] : 2 * SLATE_SIZES["slot_size"]] = -50  # keep nothing
    values = found(model)
    assert values["residual"] == values["residual_64"] == 0 and values["converged"] == values["converged_as_sets"] == 1
    assert values["starts_converged"] == 8 and values["fixed_points"] == 1
    assert values["spectral_radius"] == pytest.approx(0, abs=1e-6)
    for mode in MODES:
        for depth in ("", "_64"):
            assert values[f"cosine/{mode}{depth}"] == pytest.approx(1, abs=1e-5)
            assert values[f"norm_ratio/{mode}{depth}"] == pytest.approx(1, abs=1e-4)


def test_slots_that_change_places_have_converged_as_sets_alone(model, monkeypatch):
    monkeypatch.setattr(model.slot_attention, "step", lambda slots, keys, values: (slots.flip(1) * 1.0, None))
    generator = torch.Generator().manual_seed(0)
    slots = model.sample_slots(3, generator).detach()
    monkeypatch.setattr(fixed_points, "compare_modes", lambda *arguments: {})
    values = diagnose(model, TinyImages().probe(3), slots)
    assert (values["converged"], values["converged_as_sets"]) == (0, 1)


def test_an_image_that_has_not_converged_is_left_out_of_what_is_measured_at_the_fixed_point(model):
    with torch.no_grad():
        model.slot_attention.mlp[2].bias.fill_(3.0)  # every application moves the slots
        model.slot_attention.gru.bias_ih[SLATE_SIZES["slot_size"] : 2 * SLATE_SIZES["slot_size"]] = 50  # keep all
    values = found(model)
    assert values["converged"] == 0 and values["residual_64"] > 1e-3
    assert "spectral_radius_64" not in values and not any(name.endswith("_64") and "/" in name for name in values)
    assert {f"cosine/{mode}" for mode in MODES} < values.keys()


def test_a_checkpoint_gives_one_line_and_a_missing_one_is_named(checkpoint, capsys):
    assert main(["fixed-points", str(checkpoint), "--images", "2"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), index_col="model")
    assert list(table.index) == ["run"] and 0 <= table.loc["run", "converged"] <= 1
    assert main(["fixed-points", "nowhere.ckpt"]) == 2
    assert "nowhere.ckpt: no such file" in capsys.readouterr().err


def test_a_checkpoint_that_lies_alone_is_told_its_data(checkpoint, tmp_path, capsys):
    alone = checkpoint.rename(tmp_path / "alone.ckpt")
    command = ["fixed-points", str(alone), "--images", "2"]
    assert main(command) == 2
    assert "give --data" in capsys.readouterr().err
    command += ["--data", "data_modules.Sprites", "--data.num_images", "[2,2,2]"]
    assert main([*command, "--data.image_size", "32"]) == 2
    error = capsys.readouterr().err
    assert f"{alone}: a model of images of 16 pixels; data_modules.Sprites has 32: --data.image_size 16" in error
    assert main([*command, "--data.image_size", "16"]) == 0
    assert list(pd.read_csv(io.StringIO(capsys.readouterr().out), index_col="model").index) == ["alone.ckpt"]
    exported = tmp_path / "model.safetensors"
    assert main(["export", str(alone), str(exported)]) == 0
    assert main(["fixed-points", str(exported), *command[2:], "--data.image_size", "16"]) == 0
    assert "\nmodel.safetensors," in capsys.readouterr().out
