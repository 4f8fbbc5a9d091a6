"""The folder of a run: what it refuses, what its tables say, whose a cell is."""

import csv
import json

import pytest

from implicit_slate.ablation.matrix import load_grid
from implicit_slate.ablation.run_folder import MEASURES, RunFolder, is_locked, try_lock
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically


def open_run(grids, name="ends"):
    grid = load_grid(grids.path / "ablations.yaml", name)
    return grid, RunFolder(grids.path / "run", grid.cells)


def finish(folder, cell, status, **measures):
    row = {"cell": cell, "status": status, **folder.cells[cell].axes, **dict.fromkeys(MEASURES), **measures}
    write_atomically(folder.cell(cell) / "result.json", json.dumps(row))


def test_a_study_has_one_name_and_another_folder_another(grids):
    grid, folder = open_run(grids)
    name = folder.begin(grid, devices=1)
    assert name.startswith("ends-") and folder.begin(grid, devices=1) == name
    assert RunFolder(grids.path / "other", grid.cells).begin(grid, devices=1) != name


@pytest.mark.parametrize(
    "file, old, new, what",
    [
        ("experiment.yaml", "max_steps: 60", "max_steps: 61", "experiment.trainer.max_steps"),
        ("ablations.yaml", "diverge_at: 17", "diverge_at: 18", "cells.end=diverged,seed=0.model.diverge_at"),
    ],
)
def test_another_configuration_is_refused(grids, file, old, new, what):
    grid, folder = open_run(grids)
    folder.begin(grid, devices=1)
    before = (folder.path / "grid.json").read_bytes()
    path = grids.path / file
    path.write_text(path.read_text().replace(old, new))
    grid, folder = open_run(grids)
    with pytest.raises(UserError) as error:
        folder.check(grid, devices=1)
    assert f"({what} differs)" in str(error.value)
    assert (folder.path / "grid.json").read_bytes() == before


def test_comments_do_not_count(grids):
    grid, folder = open_run(grids)
    folder.begin(grid, devices=1)
    with open(grids.path / "experiment.yaml", "a") as file:
        file.write("# a comment\n")
    folder.check(open_run(grids)[0], devices=1)


def test_another_grid_number_of_devices_or_a_foreign_folder_is_refused(grids):
    grid, folder = open_run(grids)
    folder.begin(grid, devices=1)
    folder.check(grid)
    with pytest.raises(UserError, match="devices differs"):
        folder.check(grid, devices=2)
    with pytest.raises(UserError, match="grid differs"):
        folder.check(load_grid(grids.path / "ablations.yaml", "pair"), devices=1)
    with pytest.raises(UserError, match="other files"):
        RunFolder(grids.path, grid.cells).check(grid)
    with pytest.raises(UserError, match="is not a folder"):
        RunFolder(grids.path / "experiment.yaml", grid.cells).check(grid)


def test_a_lock_is_held_by_one_and_probing_makes_nothing(tmp_path):
    folder = tmp_path / "cell"
    assert not is_locked(folder) and not folder.exists()
    lock = try_lock(folder)
    assert is_locked(folder) and try_lock(folder) is None
    lock.release()
    assert not is_locked(folder)


def test_the_tables_have_a_row_for_every_cell(grids):
    grid, folder = open_run(grids)
    folder.begin(grid, devices=1)
    finish(folder, "end=well,seed=0", "complete", step=60, **{"val/cross_entropy": 0.5})
    lock = try_lock(folder.cell("end=diverged,seed=0"))
    folder.write_results()
    lock.release()
    rows = json.loads((folder.path / "results.json").read_text())
    assert [row["status"] for row in rows] == ["complete", "running", "waiting"]
    assert {tuple(row) for row in rows} == {("cell", "status", "end", "seed", *MEASURES)}
    assert rows[0]["val/cross_entropy"] == 0.5 and rows[2]["val/cross_entropy"] is None
    table = list(csv.DictReader((folder.path / "results.csv").open()))
    assert [row["cell"] for row in table] == [row["cell"] for row in rows] and table[0]["step"] == "60"


def test_failures_run_again_and_nothing_else_does(grids):
    grid, folder = open_run(grids)
    for cell, status in zip(folder.cells, ("complete", "diverged", "failed")):
        finish(folder, cell, status)
    folder.forget_failures()
    assert [folder.status(cell) for cell in folder.cells] == ["complete", "diverged", "waiting"]
