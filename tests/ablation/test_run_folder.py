"""The folder of a run: what it refuses, and its tables."""

import csv
import json

import pytest

from implicit_slate.ablation import command
from implicit_slate.errors import UserError
from implicit_slate.locks import try_lock
from implicit_slate.measures import COLUMNS
from implicit_slate.run_folder import RunFolder
from tests.ablation.conftest import finish


@pytest.fixture
def run(grids):
    plan = grids.plan("ends")
    command._begin(*plan)
    return plan[0]


@pytest.mark.parametrize(
    "file, old, new, what",
    [
        ("experiment.yaml", "max_steps: 60", "max_steps: 61", "config.trainer.max_steps"),
        ("ablations.yaml", "diverge_at: 17", "diverge_at: 18", "config.model.diverge_at"),
    ],
)
def test_another_configuration_is_refused(grids, run, file, old, new, what):
    path = grids.path / file
    path.write_text(path.read_text().replace(old, new))
    before = {file: file.read_bytes() for file in run.path.rglob("*.json")}
    folder, grid, preparations = grids.plan("ends")
    for attempt, arguments in ((command._check_folder, ()), (command._begin, (grid,))):
        with pytest.raises(UserError) as error:
            attempt(folder, *arguments, preparations)
        assert f"({what} differs)" in str(error.value)
    assert {file: file.read_bytes() for file in run.path.rglob("*.json")} == before


@pytest.mark.parametrize("file", ["grid.json", "cells/end=well,seed=0/cell.json"])
def test_comments_do_not_count_and_a_torn_file_is_written_anew(grids, run, file):
    with open(grids.path / "experiment.yaml", "a") as experiment:
        experiment.write("# a comment\n")
    before = (run.path / file).read_text()
    (run.path / file).write_text(before[:50])
    command._begin(*grids.plan("ends"))
    assert (run.path / file).read_text() == before


@pytest.mark.parametrize(
    "name, devices, place, message",
    [
        ("ends", 2, "run", "devices differs"),
        ("pair", None, "run", r"other cells \(such as end=well,seed=0\)"),
        ("ends", None, ".", "other files"),
        ("ends", None, "experiment.yaml", "is not a folder"),
    ],
)
def test_another_grid_number_of_devices_or_a_foreign_folder_is_refused(grids, run, name, devices, place, message):
    folder, _, preparations = grids.plan(name, devices)
    folder.path = grids.path / place
    with pytest.raises(UserError, match=message):
        command._check_folder(folder, preparations)


def test_a_run_whose_grid_file_is_gone_is_known_by_its_cells(grids, run):
    before = (run.path / "grid.json").read_text()
    (run.path / "grid.json").unlink()
    folder, _, preparations = grids.plan("pair")
    with pytest.raises(UserError, match=r"other cells \(such as end="):
        command._check_folder(folder, preparations)
    command._begin(*grids.plan("ends"))
    assert (run.path / "grid.json").read_text() == before


def test_a_run_may_be_given_more_seeds(grids, run):
    finish(run, "end=well,seed=0", "complete")
    path = grids.path / "ablations.yaml"
    path.write_text(path.read_text().replace("cells: end}", "cells: {product: [end, {seeds: 2}]}}"))
    command._begin(*grids.plan("ends"))
    assert [run.status(cell) for cell in RunFolder(run.path).cells] == ["complete", *["waiting"] * 5]


def test_the_tables_have_a_row_for_every_cell(run):
    finish(run, "end=well,seed=0", "complete", step=60, **{"val/cross_entropy": 0.5})
    with try_lock(run.cell("end=diverged,seed=0")):
        run.write_results()
    rows = json.loads((run.path / "results.json").read_text())
    assert [row["status"] for row in rows] == ["complete", "running", "waiting"]
    after = ("seconds", "steps_per_second", "git", "versions")
    assert {tuple(row) for row in rows} == {("cell", "status", "end", "seed", "step", *COLUMNS, *after)}
    assert rows[0]["val/cross_entropy"] == 0.5 and rows[2]["val/cross_entropy"] is None
    table = list(csv.DictReader((run.path / "results.csv").open()))
    assert [row["cell"] for row in table] == [row["cell"] for row in rows] and table[0]["step"] == "60"


@pytest.mark.parametrize(("status", "locked"), [("failed", "running"), ("complete", "complete")])
def test_a_failed_cell_that_runs_again_is_running_and_a_done_one_stays_done(run, status, locked):
    finish(run, "end=well,seed=0", status)
    with try_lock(run.cell("end=well,seed=0")):
        assert run.status("end=well,seed=0") == locked
    assert run.status("end=well,seed=0") == status


@pytest.mark.parametrize("damage", [None, "", "torn"])
def test_a_run_is_read_without_its_grid(run, damage):
    finish(run, "end=well,seed=0", "complete")
    (run.cell("end=failed,seed=0") / "result.json").write_text("{")
    (run.cell("end=diverged,seed=0") / "result.json").write_text('{"status": "diverged", "measures": []}')
    if damage is not None:
        (run.path / "grid.json").write_text(damage)
    found = RunFolder(run.path)
    assert found.cells == dict(sorted(run.cells.items()) if damage is not None else run.cells.items())
    assert {row["cell"]: row["status"] for row in found.rows()} == {
        "end=well,seed=0": "complete", "end=diverged,seed=0": "waiting", "end=failed,seed=0": "waiting"
    }  # fmt: skip


@pytest.mark.parametrize("cells", [[{"cell": "a"}], [{"cell": "a", "axes": 3}], ["a"], 3])
def test_a_grid_file_that_somebody_changed_is_named(tmp_path, cells):
    (tmp_path / "grid.json").write_text(json.dumps({"cells": cells}))
    with pytest.raises(UserError, match=r"grid\.json: each of 'cells' needs"):
        RunFolder(tmp_path)


def test_a_folder_of_no_grid_is_named(tmp_path):
    with pytest.raises(UserError, match="not the folder of a grid"):
        RunFolder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        RunFolder(tmp_path / "nowhere")
