"""Mistakes in experiments are found before anything runs, and told in one line."""

from pathlib import Path

import pytest
import yaml

from implicit_slate.ablation.command import _to_check
from implicit_slate.ablation.configure import build, check, complete
from implicit_slate.ablation.experiment import Experiment, override
from implicit_slate.ablation.matrix import grid_names, load_grid
from implicit_slate.errors import UserError
from tests.ablation.conftest import EXPERIMENT
from tests.tiny import SLATE_SIZES

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tiny_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"model.gradeint": "implicit"}, "unknown key 'model.gradeint'; did you mean 'model.gradient'?"),
        ({"model.optimization.clipnorm": 1}, "did you mean 'model.optimization.clip_norm'?"),
        ({"trainer.max_stepz": 3}, "unknown key 'trainer.max_stepz'; did you mean 'trainer.max_steps'?"),
        ({"modle.gradient": "implicit"}, "unknown key 'modle.gradient'; did you mean 'model'?"),
        ({"trainer.max_steps": "many"}, "trainer.max_steps=many: Expected a int"),
        ({"model.optimization.clip_norm": "x"}, "model.optimization.clip_norm=x: Expected float or null"),
        ({"model.class_path": "tiny.TinyModul"}, "module 'tiny' has no attribute 'TinyModul'"),
        ({"trainer.accelerator": "abacus"}, "abacus"),
    ],
)
def test_a_mistake_is_one_line(overrides, message):
    with pytest.raises(UserError) as error:
        build(override(yaml.safe_load(EXPERIMENT), overrides), "experiment.yaml")
    assert str(error.value).startswith("experiment.yaml: ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_data_are_found(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT)
    with pytest.raises(UserError, match="nowhere"):
        check([Experiment(file, {"data.root": "nowhere"}, "here")])


def test_a_complete_config_is_read_back_as_itself():
    text = complete(override(yaml.safe_load(EXPERIMENT), {"model.optimization.clip_norm": None}), "x")
    assert yaml.safe_load(text)["model"]["init_args"]["optimization"] == {"learning_rate": 0.1, "clip_norm": None}
    assert complete(yaml.safe_load(text), "x") == text


@pytest.mark.parametrize("name", grid_names(ROOT / "ablations.yaml"))
def test_every_value_of_the_shipped_grids_parses(name):
    """All of ablations.yaml against the experiments that it names; the data need not be here."""
    file = ROOT / "ablations.yaml"
    grid = load_grid(file, name)
    built, parsed = _to_check(grid, file)
    for experiment in [*built, *parsed]:
        if experiment.path == grid.experiment:
            assert grid.overrides.items() <= experiment.overrides.items()
        resolved = yaml.safe_load(complete(experiment.config(), experiment.origin))
        for key, value in experiment.overrides.items():
            at = resolved
            for part in key.split("."):
                at = at["init_args"][part] if part not in at else at[part]
            assert at == value


def test_a_solver_and_a_gradient_mode_that_do_not_go_together_are_found(tmp_path):
    """Each is right by itself; the cell in which they meet would fail after hours of others."""
    experiment = {
        "model": {"class_path": "implicit_slate.training.SLATEModule", "init_args": dict(SLATE_SIZES)},
        "data": {"class_path": "data_modules.MirrorScenes", "init_args": {"image_size": 16, "batch_size": 4}},
        "trainer": {"max_steps": 1, "accelerator": "cpu"},
    }
    axes = {
        "gradient": {mode: {"model.gradient": mode} for mode in ("implicit", "unrolled")},
        "solver": {"picard": {"model.solver": "picard"}, "broyden": {"model.solver": "broyden", "model.tol": 1e-3}},
    }
    grids = {"all": ["gradient", "solver"], "those": ["gradient", {"solver": ["picard"]}]}
    grids = {
        name: {"description": "x", "experiment": "x.yaml", "cells": {"product": [*axes, {"seeds": 1}]}}
        for name, axes in grids.items()
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(experiment))
    (tmp_path / "grids.yaml").write_text(yaml.safe_dump({"axes": axes, "grids": grids}))
    check(*_to_check(load_grid(tmp_path / "grids.yaml", "those"), tmp_path / "grids.yaml"))
    with pytest.raises(UserError, match="gradient=unrolled,solver=broyden,seed=0: .*picard"):
        check(*_to_check(load_grid(tmp_path / "grids.yaml", "all"), tmp_path / "grids.yaml"))
