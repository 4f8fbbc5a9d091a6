"""The precision that is chosen if none is given."""

import pytest
import torch
import yaml

from implicit_slate.cli import main
from implicit_slate.training.precision import fastest_precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx2": True}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_bfloat16_where_a_cpu_multiplies_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest_precision("auto") == fastest_precision("cpu") == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "32-true"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")]
)
def test_bfloat16_from_ampere_on_and_the_cpu_s_choice_where_the_cpu_is_asked_for(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capability < (8, 0)}, raising=False)
    assert fastest_precision("auto") == fastest_precision("gpu") == expected
    assert fastest_precision("cpu") != expected


@pytest.mark.parametrize(("given", "found"), [([], "bf16-mixed"), (["--trainer.precision", "32-true"], "32-true")])
def test_fit_trains_in_the_fastest_precision_unless_another_is_given(monkeypatch, tmp_path, given, found):
    module = "implicit_slate.training.experiment_cli.fastest_precision"
    monkeypatch.setattr(module, lambda accelerator: "bf16-mixed")
    sizes = dict(image_size=16, vocab_size=8, d_model=8, slot_size=8, slot_mlp_size=8, num_blocks=1, num_heads=2)
    experiment = {
        "model": {"class_path": "implicit_slate.training.SLATEModule", "init_args": sizes},
        "data": {"class_path": "tests.tiny.TinyImages"},
        "trainer": {"max_steps": 1, "default_root_dir": str(tmp_path), "accelerator": "cpu", "logger": False},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    assert main(["fit", "-c", str(tmp_path / "experiment.yaml"), *given]) == 0
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["trainer"]["precision"] == found
