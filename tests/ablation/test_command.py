"""The command `implicit-slate ablate`, with tiny cells, real processes and real kills."""

import json
import os
import signal

import pytest

import tests.ablation
from implicit_slate.ablation import cell, command
from implicit_slate.locks import is_locked
from implicit_slate.training.checkpoints import read_checkpoint
from tests.ablation.conftest import wait_until


def results(folder):
    return {path.parent.name: path for path in folder.glob("cells/*/result.json")}


def test_two_at_once_share_a_grid_and_a_failing_cell_fails_alone(grids):
    run = grids.path / "runs" / "ends"
    both = [grids.start("ends", "--workers", "2") for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [1, 1], outputs
    trained = {path.parent.name: path.read_text().count("GPU available") for path in run.glob("cells/*/log.txt")}
    assert trained.pop("end=failed,seed=0") in (1, 2)  # tried again by a launcher that starts after the failure
    assert trained == {"end=well,seed=0": 1, "end=diverged,seed=0": 1}  # each was trained by one launcher only
    states = {name: json.loads(path.read_text())["status"] for name, path in results(run).items()}
    assert states == {"end=well,seed=0": "complete", "end=diverged,seed=0": "diverged", "end=failed,seed=0": "failed"}
    assert "ValueError: as the test asks" in (run / "cells" / "end=failed,seed=0" / "log.txt").read_text()
    assert "log.txt" in outputs[0][1]


def test_ctrl_c_stops_within_moments_and_says_how_to_go_on(grids):
    process = grids.start("slow", "--workers", "1")
    run = grids.path / "runs" / "slow"
    wait_until(lambda: list(run.glob("*/checkpoints/last.ckpt")))  # while it trains
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)  # usually a second; longer on a busy machine
    assert process.returncode == 130
    assert err.strip() == "stopped; to continue: implicit-slate ablate slow --workers 1"
    assert not any(is_locked(path.parent) for path in run.glob("**/.lock") if path.parent != run)


def test_list_prints_and_makes_nothing(grids):
    status, out, err = grids.run("pair", "--list")
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["gradient=unrolled,seed=0", "waiting"]
    assert not (grids.path / "runs").exists()


def test_a_run_that_is_moved_while_it_trains_ends_with_a_line_and_leaves_nothing_at_its_place(grids):
    process = grids.start("slow", "--workers", "1")
    run, moved = grids.path / "runs" / "slow", grids.path / "moved"
    wait_until(lambda: list(run.glob("*/curves.csv")))  # the last file of a checkpoint
    run.rename(moved)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "cell.json is gone; was the run moved?" in err and err.count("\n") == 1, err
    assert not run.exists()
    status, out, _ = grids.run("slow", "--out", str(moved))
    assert status == 0 and "resumed: pretrain" in out


def test_a_number_of_steps_that_is_none_is_a_line(grids):
    experiment = grids.path / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("max_steps: 60", "max_steps: many"))
    status, _, err = grids.run("one")
    assert status == 2 and "trainer.max_steps=many: expected a positive whole number" in err
    assert err.startswith("implicit-slate: ") and err.count("\n") == 1 and not (grids.path / "runs").exists()


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 1000), lambda file: file.unlink()])
def test_a_torn_checkpoint_of_the_pretraining_is_made_again_before_the_cells(grids, monkeypatch, capsys, damage):
    monkeypatch.chdir(grids.path)
    monkeypatch.syspath_prepend(tests.ablation.__path__[0])
    folder, grid, preparations = grids.plan("slow")
    last = folder.pretrain / "checkpoints" / "last.ckpt"

    def pretrain():
        command._begin(folder, grid, preparations)
        is_whole = folder.is_pretrained()
        assert cell.run(folder.pretrain) == 0 and folder.is_pretrained()
        return is_whole, read_checkpoint(last)["state_dict"]

    _, expected = pretrain()
    assert pretrain()[0] and "torn" not in capsys.readouterr().out
    damage(last)
    is_whole, found = pretrain()
    assert not is_whole and "last.ckpt: torn or gone; the pretraining is done again" in capsys.readouterr().out
    assert all(found[key].equal(value) for key, value in expected.items())
