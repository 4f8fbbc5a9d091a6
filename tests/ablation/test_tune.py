"""The command `implicit-slate tune`, with tiny SLATEs and real databases."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import Mock

import optuna
import psutil
import pytest
import yaml

from implicit_slate.ablation.configure import Parser, build
from implicit_slate.ablation.matrix import load_grid
from implicit_slate.ablation.pool import MOST_TRIES, Resources
from implicit_slate.ablation.tuning import search, storage
from implicit_slate.ablation.tuning.results import write_results
from implicit_slate.ablation.tuning.search import CellFailed, Search, Space
from implicit_slate.ablation.tuning.storage import open_storage
from implicit_slate.cli import main
from implicit_slate.errors import UserError
from implicit_slate.files import sqlite_url
from implicit_slate.processes import BUSY
from implicit_slate.run_folder import make_result, write_result
from implicit_slate.yaml_files import load_yaml, override
from tests.faults.grid import OFTEN, SLATE

EXPERIMENT = override(SLATE, {"trainer.max_steps": 30, "trainer.val_check_interval": 5, "trainer.callbacks": [OFTEN]})
QUICKLY = """
import sys
from implicit_slate.ablation.tuning import storage
from implicit_slate.cli import main
storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS = 1, 30
sys.exit(main(["tune", *sys.argv[1:]]))
"""


@pytest.fixture
def tune(tmp_path):
    """`tune(...)` starts the command in a folder with `tiny.yaml`, and returns its process."""
    started = []
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", QUICKLY, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_each_mode_is_tuned_and_its_best_settings_are_an_experiment(tune, tmp_path):
    first, run = tmp_path / "50%?", tmp_path / "renamed"
    for out in (first, run):  # after renaming the folder, nothing is left to do
        process = tune("tiny.yaml", "--trials", 2, "--workers", 2, "--out", out)
        said = process.communicate(timeout=240)[0]
        assert process.returncode == 0, said
        if out == first:
            first.rename(run)
    assert not first.exists() and "started" not in said
    report = (run / "report.md").read_text()
    axis = yaml.safe_load(report.partition("```yaml")[2].partition("```")[0])["gradient_at_best"]
    for mode in ("unrolled", "implicit"):
        study = optuna.load_study(study_name=mode, storage=sqlite_url(run / "tune.db"))
        assert len(study.trials) == 2 and study.trials[0].params["learning_rate"] == 1e-3  # the experiment's value
        best = load_yaml(run / "best" / f"gradient={mode}.yaml")
        assert best == override(EXPERIMENT, axis[mode])
        build(best, "best", Parser)
        (tmp_path / "ablations.yaml").write_text(
            yaml.safe_dump(
                {
                    "axes": {"a": {"b": {}}},
                    "grids": {"g": {"experiment": str(run / "best" / f"gradient={mode}.yaml"), "cells": "a"}},
                }
            )
        )
        assert load_grid(tmp_path / "ablations.yaml", "g").cells
        assert f"importance_gradient={mode}.png" in report and (run / f"slice_gradient={mode}.png").exists()


def test_a_mode_whose_only_trial_ended_early_has_no_loss_in_the_report(tmp_path):
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("cell", 0)
    trial.report(3.5, step=10)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # Optuna keeps 3.5 as its value
    table = write_results(Mock(studies={"unrolled": study}, folder=tmp_path)).read_text().splitlines()[2:5]
    assert table[2] == "| `unrolled` | 1 | 1 | ended early | none | |"
    assert len({row.count("|") for row in table}) == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere.yaml"], "nowhere.yaml: No such file"),
        (["nogrid"], "unknown grid 'nogrid'"),
        (["pair", "--modes", "implicitt"], "has no gradient mode 'implicitt'; did you mean 'implicit'?"),
        (["pair", "--out", "runs/pair"], "runs/pair: holds other files, but no search; give another --out"),
        (["pair", "--trials", "0"], "--trials: expected a positive number, got '0'"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_a_line(grids, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(grids.path)
    (grids.path / "runs" / "pair" / "cells").mkdir(parents=True)
    (grids.path / "runs" / "pair" / "grid.json").write_text("{}")
    before = sorted(grids.path.rglob("*"))
    assert main(["tune", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(grids.path.rglob("*")) == before


@pytest.mark.parametrize(
    "url, said",
    [
        ("tune.db", "expected sqlite:///FILE"),
        ("nosuch://host/db", "expected sqlite:///FILE"),
        ("sqlite:////nowhere/tune.db", "unable to open database file"),
        ("postgresql://me:secret@127.0.0.1:1/db", "onnection refused"),
    ],
)
def test_a_storage_that_is_not_there_is_named_without_its_password(url, said):
    with pytest.raises(UserError) as error:
        open_storage(url)
    assert said in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "x.db").write_text("no database, but some text that is long enough to be looked at" * 20)
    with pytest.raises(UserError, match="x.db: cannot be opened"):
        open_storage(f"sqlite:///{tmp_path / 'x.db'}")


def test_a_trial_whose_process_dies_before_its_first_heartbeat_is_begun_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "GRACE_SECONDS", 1)
    database = open_storage(f"sqlite:///{tmp_path / 'x.db'}")
    study = optuna.create_study(storage=database)
    study.enqueue_trial({"x": 1.0})
    study.ask()  # and its process dies
    time.sleep(2.5)
    optuna.storages.fail_stale_trials(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


def test_a_cell_that_signals_stop_is_continued_any_number_of_times_and_one_that_dies_is_not(tmp_path, monkeypatch):
    ends = [BUSY] * MOST_TRIES + [0] + [-signal.SIGKILL] * MOST_TRIES

    def start(folder, *_):
        if (status := ends.pop(0)) == 0:
            write_result(folder, make_result(folder, {"val/loss": {30: 2.0}}, "complete"))
        return Mock(exitcode=status)

    monkeypatch.setattr(search, "start", start)
    tuned, study = Search(tmp_path, {"implicit": EXPERIMENT}, None, 30, 1, say=lambda _: None), optuna.create_study()
    assert tuned._train("implicit", study.ask(), Resources(1, 1, (), 1), 0) == 2.0
    with pytest.raises(CellFailed, match="killed 3 times"):
        tuned._train("implicit", study.ask(), Resources(1, 1, (), 1), 0)
    assert not ends


def test_quoted_numbers_are_numbers():
    quoted = {"model.optimization.learning_rate": "1e-3", "model.optimization.warmup_steps": "4"}
    expected = {"learning_rate": 1e-3, "clip_norm": 1.0, "warmup_steps": 4}
    assert Space.around(override(EXPERIMENT, quoted), 30).own == expected


def test_an_experiment_without_a_rate_is_refused():
    with pytest.raises(UserError, match="learning_rate and trainer.max_steps"):
        Space.around(override(EXPERIMENT, {"model.optimization": {}}), 30)


class PostgreSQL:
    """A PostgreSQL server for the test, which can be stopped, started and made to stall."""

    def __init__(self, folder: Path):
        [self.bin, *_] = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True) or [None]
        if self.bin is None:
            pytest.skip("needs PostgreSQL in /usr/lib/postgresql")
        self.data, self.user = folder / "data", ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        folder.chmod(0o777)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        self.url = f"postgresql://tune@127.0.0.1:{port}/postgres"
        self._call("initdb", "-A", "trust", "-U", "tune", "--no-sync")
        self.start()

    def start(self) -> None:
        self._call("pg_ctl", "-w", "-o", self.options, "-l", self.data.parent / "log", "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-m", "immediate", "stop")

    def stall(self) -> None:
        server = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        for process in (server, *server.children(recursive=True)):
            process.suspend()
            self.stalled.append(process)

    stalled: list[psutil.Process] = []

    def _call(self, name: str, *arguments) -> None:
        command = [*self.user, self.bin / name, "-D", self.data, *arguments]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, cwd="/")


@pytest.fixture
def server():
    with tempfile.TemporaryDirectory() as folder:
        server = PostgreSQL(Path(folder))
        yield server
        for process in server.stalled:
            process.resume()
        server.stop()


def hear(process, text):
    """Reads a process's output until a line contains `text`."""
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return
    raise AssertionError(f"it never said {text!r}: {''.join(said)}")


@pytest.mark.slow
def test_processes_share_a_server_survive_its_absence_and_take_over_from_the_dead(tune, server, tmp_path):
    arguments = ("tiny.yaml", "--modes", "implicit", "--trials", 4, "--workers", 1, "--storage", server.url)
    first, second = tune(*arguments), tune(*arguments)
    hear(first, "started")
    hear(second, "started")
    first.kill()
    server.stop()
    hear(second, "does not answer; waiting")
    time.sleep(10)
    server.start()
    said = second.communicate(timeout=400)[0]
    assert second.returncode == 0 and "answers again" in said and "Traceback" not in said, said
    study = optuna.load_study(study_name="tune-tiny implicit", storage=open_storage(server.url))
    found = [trial.state.name for trial in study.trials]
    assert sum(state in ("COMPLETE", "PRUNED") for state in found) >= 4
    assert "RUNNING" not in found and "FAIL" in found  # the trial of the killed process, which was tried again
    assert len(list((tmp_path / "runs" / "tune-tiny" / "cells").iterdir())) == len(found) - found.count("FAIL")
    report = (tmp_path / "runs" / "tune-tiny" / "report.md").read_text()
    assert report.count("ended early") == 1  # only the heading: the first trial was tried again and has a loss


@pytest.mark.slow
def test_ctrl_c_is_heard_while_a_server_stalls(tune, server):
    process = tune("tiny.yaml", "--storage", server.url)
    hear(process, "started")
    server.stall()
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 130 and "to continue: implicit-slate tune tiny.yaml" in said
