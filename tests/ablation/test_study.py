"""The Optuna study that shows a grid in the dashboard."""

import optuna

from implicit_slate.ablation.study import add_trials
from implicit_slate.files import sqlite_url
from implicit_slate.run_folder import RunFolder
from tests.ablation.conftest import finish

CELLS = {f"gradient={g},seed={s}": {"gradient": g, "seed": s} for g in ("unrolled", "implicit") for s in (0, 1)}


def trials(folder):
    study = optuna.load_study(storage=sqlite_url(folder.path / "study.db"), study_name="demo")
    return {trial.user_attrs["cell"]: trial for trial in study.trials}


def test_every_finished_cell_is_a_trial_once_and_the_study_may_be_deleted(tmp_path):
    folder = RunFolder(tmp_path / "50%?" / "demo", CELLS)
    first, second, third, waiting = CELLS
    finish(folder, first, "complete", **{"val/cross_entropy": 3.0, "grad_norm_max": None})
    finish(folder, second, "diverged")
    finish(folder, third, "failed")
    for _ in range(2):
        add_trials(folder)
    found = trials(folder)
    assert list(found) == [first, second]
    assert found[first].value == 3.0 and found[first].params == CELLS[first]
    assert found[second].state == optuna.trial.TrialState.PRUNED
    (folder.path / "study.db").unlink()  # its name is fixed, whatever the folder's name
    add_trials(folder)
    assert len(trials(folder)) == 2


def test_a_run_that_was_given_more_seeds_has_them_in_the_study(tmp_path):
    for cells in (dict(list(CELLS.items())[:1]), CELLS):
        folder = RunFolder(tmp_path / "demo", cells)
        for cell in cells:
            finish(folder, cell, "complete", **{"val/cross_entropy": 3.0, "grad_norm_max": None})
        add_trials(folder)
    assert list(trials(folder)) == list(CELLS)


def test_a_damaged_study_is_said_in_a_line_and_stops_nothing(tmp_path, capsys):
    folder = RunFolder(tmp_path / "demo", CELLS)
    finish(folder, next(iter(CELLS)), "complete", **{"val/cross_entropy": 3.0, "grad_norm_max": None})
    (folder.path / "study.db").write_bytes(b"SQLite format 3\0" + b"torn" * 40)
    add_trials(folder)
    [line] = capsys.readouterr().err.splitlines()
    assert "study.db: not written" in line and "can be deleted" in line
