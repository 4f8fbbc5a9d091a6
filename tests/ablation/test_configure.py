"""Overrides of experiments: mistakes in them are found before anything runs, and reported in one line."""

from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from implicit_slate.ablation.command import _preparations, _to_check
from implicit_slate.ablation.configure import Parser, build, check
from implicit_slate.ablation.matrix import load_grid
from implicit_slate.errors import UserError
from implicit_slate.run_folder import RunFolder
from implicit_slate.yaml_files import leaves, load_yaml, override
from tests.ablation.conftest import EXPERIMENT
from tests.tiny import SLATE_SIZES

ROOT = Path(__file__).parents[2]
TINY = yaml.safe_load(EXPERIMENT)


@pytest.fixture(autouse=True)
def tiny_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ({"model.a": 2}, {"model": {"class_path": "M", "init_args": {"a": 2, "b": {"c": 1.0}}}}),
        ({"model.b.c": None}, {"model": {"class_path": "M", "init_args": {"a": 1, "b": {"c": None}}}}),
        ({"model.class_path": "N"}, {"model": {"class_path": "N", "init_args": {"a": 1, "b": {"c": 1.0}}}}),
        ({"data.x.y": 1, "seed": 2}, {"data": {"class_path": "D", "init_args": {"x": {"y": 1}}}, "seed": 2}),
    ],
)
def test_overrides_reach_through_init_args_make_what_is_missing_and_leave_the_config_alone(overrides, expected):
    def config():
        return {"model": {"class_path": "M", "init_args": {"a": 1, "b": {"c": 1.0}}}, "data": {"class_path": "D"}}

    given = config()
    assert override(given, overrides) == given | expected
    assert given == config()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"model.gradeint": "implicit"}, "unknown key 'model.gradeint'; did you mean 'model.gradient'?"),
        ({"model.class_path": "tiny.TinyModul"}, "module 'tiny' has no attribute 'TinyModul'"),
        ({"trainer.accelerator": "abacus"}, "abacus"),
        ({"data.root": "nowhere"}, "nowhere"),
        ({"trainer.enable_checkpointing": False}, "enable_checkpointing"),  # a cell needs checkpoints to resume from
        ({"trainer.callbacks": [{"init_args": {"every_n_steps": 5}}]}, "trainer.callbacks"),
    ],
)
def test_a_mistake_is_one_line(overrides, message):
    with pytest.raises(UserError) as error:
        check({"experiment.yaml": override(TINY, overrides)}, {})
    assert str(error.value).startswith("experiment.yaml: ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_needs_files_that_do_not_exist_yet_is_only_parsed_and_a_cpu_is_no_accelerator():
    later = override(TINY, {"data.root": "nowhere"})
    assert check({"experiment.yaml": TINY}, {"a cell": later}) == 0
    with pytest.raises(UserError, match="^a cell: .*model.gradeint"):
        check({"experiment.yaml": TINY}, {"a cell": override(later, {"model.gradeint": "implicit"})})


def complete(config):
    """The YAML of a config, with all defaults filled in."""
    cli = build(config, "x", Parser)
    return cli.parser.dump(cli.config, skip_unset=False)


def test_a_complete_config_is_read_back_as_itself():
    text = complete(override(TINY, {"model.optimization.clip_norm": None}))
    assert yaml.safe_load(text)["model"]["init_args"]["optimization"] == {"learning_rate": 0.1, "clip_norm": None}
    assert complete(yaml.safe_load(text)) == text


@pytest.mark.parametrize("name", load_yaml(ROOT / "ablations.yaml")["grids"])
def test_every_value_of_the_shipped_grids_parses(name):
    """Checks all of ablations.yaml against the experiments that it names; the data sets are not needed."""
    grid = load_grid(ROOT / "ablations.yaml", name)
    seen, experiment = set(), load_yaml(grid.experiment)
    configs = [load_yaml(grid.pretrain), override(experiment, {grid.checkpoint: "last.ckpt"})] if grid.pretrain else []
    for cell in grid.cells:
        values = {(axis, value) for axis, value in cell.axes.items() if axis != "seed"}
        if not values <= seen:
            seen |= values
            configs.append(override(experiment, cell.overrides))
    for config in configs:
        given = {key: value for key, value in leaves(config) if not isinstance(value, list)}
        resolved = dict(leaves(yaml.safe_load(complete(config))))
        assert {key: resolved.get(key) for key in given} == given


def test_a_solver_and_a_gradient_mode_that_do_not_go_together_are_found(tmp_path):
    """Each is valid by itself; the cell that combines them would fail only after hours of other cells."""
    experiment = {
        "model": {"class_path": "implicit_slate.training.SLATEModule", "init_args": dict(SLATE_SIZES)},
        "data": {"class_path": "data_modules.MirrorScenes", "init_args": {"image_size": 16, "batch_size": 4}},
        "trainer": {"max_steps": 1, "accelerator": "cpu"},
    }
    axes = {
        "gradient": {mode: {"model.gradient": mode} for mode in ("implicit", "unrolled")},
        "solver": {"picard": {"model.solver": "picard"}, "broyden": {"model.solver": "broyden", "model.tol": 1e-3}},
    }
    grids = {"all": {"experiment": "x.yaml", "cells": {"product": ["gradient", "solver", {"seeds": 2}]}}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(experiment))
    (tmp_path / "grids.yaml").write_text(yaml.safe_dump({"axes": axes, "grids": grids}))
    grid = load_grid(tmp_path / "grids.yaml", "all")
    folder = RunFolder(tmp_path / "run", {cell.id: cell.axes for cell in grid.cells})
    arguments = Namespace(file=tmp_path / "grids.yaml", launcher="local")
    configs, _ = _to_check(grid, arguments, _preparations(folder, grid, None))
    assert len(configs) == 5  # the experiment, and each cell with its first seed
    with pytest.raises(UserError, match="gradient=unrolled,solver=broyden,seed=0: .*picard"):
        check(configs, {})
