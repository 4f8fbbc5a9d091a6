"""How a cell ends, in this process."""

import json

import pytest
import torch
import yaml

from implicit_slate.ablation import cell
from implicit_slate.ablation.experiment import Experiment
from implicit_slate.training import SLATEModule
from tests.tiny import SLATE_SIZES

EXPERIMENT = {
    "model": {"class_path": "implicit_slate.training.SLATEModule", "init_args": SLATE_SIZES},
    "data": {"class_path": "tests.tiny.TinyImages"},
    "trainer": {"max_steps": 5, "accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 0},
}


def run_cell(folder, overrides):
    (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    experiment = Experiment(folder / "experiment.yaml", overrides, "here")
    folder = folder / "cells" / "a"
    cell.prepare(folder, "a", {"seed": 0}, experiment, devices=1)
    cell.run(folder)
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_a_refinement_that_starts_from_nan_has_diverged_and_not_failed(tmp_path, monkeypatch, gradient):
    """Without any callback that watches the gradients."""
    train = SLATEModule.training_step

    def with_nan_from_step_3(module, batch, batch_idx):
        if module.global_step == 3:
            with torch.no_grad():
                module.model.slot_attention.project_q.weight.fill_(torch.nan)
        return train(module, batch, batch_idx)

    monkeypatch.setattr(SLATEModule, "training_step", with_nan_from_step_3)
    result = run_cell(tmp_path, {"model.gradient": gradient})
    assert (result["status"], result["step"]) == ("diverged", 3)
    assert "error" not in result


def test_any_other_bad_value_in_training_is_a_failure(tmp_path, monkeypatch):
    def refuse(module, batch, batch_idx):
        raise ValueError("as the test asks")

    monkeypatch.setattr(SLATEModule, "training_step", refuse)
    result = run_cell(tmp_path, {})
    assert (result["status"], result["error"]) == ("failed", "ValueError: as the test asks")
