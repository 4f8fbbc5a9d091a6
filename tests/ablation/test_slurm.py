"""Grids on a real SLURM: two nodes on this machine, real jobs."""

import csv
import io
import json
import os
from argparse import Namespace
from pathlib import Path

import pytest

from implicit_slate.ablation import cell, command
from implicit_slate.ablation.launchers import Work, slurm
from implicit_slate.ablation.progress import ProgressDisplay
from implicit_slate.errors import UserError
from implicit_slate.run_folder import RunFolder, status_of
from implicit_slate.yaml_files import override
from tests.ablation.cluster import cluster_in, why_there_is_none
from tests.ablation.conftest import TINY, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    if why := why_there_is_none():
        pytest.skip(why)
    with cluster_in(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(started, monkeypatch):
    for name, value in started.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield started
    started.ask("scancel", "--user=root")
    started.start_nodes()  # nodes that an earlier test killed


def work_of(path: Path, cells: dict[str, dict], pretrain: bool = False, devices: int = 1, **options) -> Work:
    """The work of a run in `path`, without checks of the experiment. `cells`: {id: overrides}."""
    axes = {name: {"seed": index} for index, name in enumerate(cells)}
    folder = RunFolder(path, axes)
    preparations = {folder.pretrain: cell.preparation("pretrain", {}, TINY, 1, None)} if pretrain else {}
    for name, overrides in cells.items():
        key = "model.checkpoint" if pretrain else None
        config = override(TINY, overrides)
        preparations[folder.cell(name)] = cell.preparation(name, axes[name], config, devices, key)

    def begin():
        (path / "cells").mkdir(parents=True, exist_ok=True)
        facts = [{"cell": name, "axes": axes[name]} for name in cells]
        (path / "grid.json").write_text(json.dumps({"grid": "tiny", "description": "", "cells": facts}))
        for place, content in preparations.items():
            cell.prepare(place, content)

    given = dict(time="10", partition=None, max_parallel=None, slurm=None, dry_run=False) | options
    missing = {name: folder.cell(name) for name in cells if folder.result(name) is None}
    first = folder.pretrain if pretrain and status_of(folder.pretrain) != "complete" else None
    return Work(
        folder, first, missing, preparations, 0, Namespace(**given), begin,
        ProgressDisplay(folder, {}),
    )  # fmt: skip


def rows(folder: Path) -> list[dict]:
    """The rows of `results.csv`, without times."""
    table = csv.DictReader(io.StringIO((folder / "results.csv").read_text()))
    return [{key: value for key, value in row.items() if key not in ("seconds", "steps_per_second")} for row in table]


def undisturbed(path: Path, cells: dict[str, dict], pretrain: bool = False) -> list[dict]:
    """The rows of the same run if this process trains one cell after the other."""
    work = work_of(path, cells, pretrain)
    work.begin()
    for place in filter(None, (work.pretrain, *work.cells.values())):
        assert cell.run(place) == 0
    work.folder.write_results()
    return rows(path)


def test_a_grid_is_the_same_on_slurm_and_submitted_once(cluster, tmp_path, capsys):
    cells = {"a": {}, "b": {"model.diverge_at": 17}}
    work = work_of(tmp_path / "a run", cells, max_parallel=2)
    is_open = slurm.launch(work)
    assert "2 cells without a result, 0 of them queued" in capsys.readouterr().out
    slurm.launch(work)
    assert "2 cells without a result, 2 of them queued" in capsys.readouterr().out
    command._print_states(work.folder, "slurm")
    shown = capsys.readouterr().out
    assert "queued as job" in shown or "running" in shown
    assert "ArrayTaskThrottle=2" in cluster.ask("scontrol", "show", "job") and is_open()
    wait_until(lambda: not is_open())
    found = rows(work.folder.path)
    assert [row["status"] for row in found] == ["complete", "diverged"]
    assert found == undisturbed(tmp_path / "here", cells)
    assert (work.folder.path / "report" / "index.html").exists()


@pytest.mark.slow
def test_a_grid_outlives_a_cancelled_task_and_a_dead_node(cluster, tmp_path, capsys):
    cells = {name: {"model.pause": 0.5} for name in "abcd"}
    work = work_of(tmp_path / "run", cells, pretrain=True)
    is_open = slurm.launch(work)
    wait_until(lambda: all((place / "checkpoints" / "last.ckpt").exists() for place in work.cells.values()), 600)
    array = cluster.ask("squeue", "-h", "-o", "%F", "-n", "run-cells-1").split()[0]
    cluster.ask("scancel", f"{array}_1")
    wait_until(lambda: status_of(work.cells["a"]) == "waiting", 60)
    assert "stopped by a signal" in (work.cells["a"] / "log.txt").read_text()
    cluster.kill_node("n2")
    capsys.readouterr()
    slurm.launch(work_of(tmp_path / "run", cells, pretrain=True))
    assert "tasks 1 to 1\n" in capsys.readouterr().out  # the cancelled one
    wait_until(lambda: "down" in cluster.ask("sinfo", "-h", "-n", "n2", "-o", "%T"))
    cluster.start_nodes()
    wait_until(lambda: not is_open(), 900)
    assert rows(tmp_path / "run") == undisturbed(tmp_path / "here", cells, pretrain=True)


@pytest.mark.slow
def test_a_preempted_cell_and_one_at_its_time_limit_go_on_where_they_were(cluster, tmp_path):
    cells = {"a": {"model.pause": 4.0}}
    work = work_of(tmp_path / "run", cells, time="4", slurm=["signal=USR1@60"])
    is_open = slurm.launch(work)
    wait_until((work.cells["a"] / "checkpoints" / "last.ckpt").exists, 600)
    cluster.ask("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    wait_until(lambda: not is_open(), 1200)
    log = (work.cells["a"] / "log.txt").read_text()
    assert log.count("stopped by a signal") >= 2 and log.count("resumed from step") >= 2
    assert rows(tmp_path / "run") == undisturbed(tmp_path / "here", {"a": {"model.pause": 0}})


@pytest.mark.slow
def test_a_cell_on_two_nodes(cluster, grids, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # because these nodes have no host names of their own
    status, out, err = grids.run("one", "--launcher", "slurm", "--nodes", "2", "--time", "10", "--wait")
    run = grids.path / "runs" / "one"
    assert (status, out.count("1 cells: 1 complete")) == (0, 1), err
    [log] = run.glob("cells/*/log.txt")
    assert "MEMBER: 2/2" in log.read_text() and (run / "report" / "index.html").exists()
    status, out, err = grids.run("one", "--launcher", "slurm", "--nodes", "2")  # nothing is left to do
    assert (status, out.count("submitted")) == (0, 0)


def test_what_sbatch_refuses_is_one_line(cluster, tmp_path):
    with pytest.raises(UserError, match="^sbatch: .*nvalid partition") as refusal:
        slurm.launch(work_of(tmp_path / "run", {"a": {}}, partition="none"))
    assert "\n" not in str(refusal.value)


def test_where_the_job_of_the_report_is_refused_the_others_are_named(tmp_path, monkeypatch, capsys):
    """The cluster refuses small jobs; its commands are replaced by scripts."""
    answers = {"squeue": "exit 0", "sbatch": 'case "$*" in *report.sh*) echo too small >&2; exit 1;; esac; echo 41'}
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm.launch(work_of(tmp_path / "run", {"a": {}}))
    out, err = capsys.readouterr()
    assert "cells: job 41, tasks 1 to 1\n" in out and "to stop them: scancel 41\n" in out
    assert err == "no job for the report, which `implicit-slate report` makes: sbatch: too small\n"


def test_a_machine_without_slurm_is_named_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="this machine has no squeue"):
        slurm.launch(work_of(tmp_path / "run", {"a": {}}))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_scripts_and_makes_nothing(tmp_path, capsys):
    options = ["gres=gpu:a100:2", "exclusive", "account=me"]
    cells = {"a": {"trainer.accelerator": "auto"}, "b": {}}
    work = work_of(tmp_path / "run", cells, True, 2, slurm=options, max_parallel=1, dry_run=True)
    slurm.launch(work)
    pretrain, cells, report = capsys.readouterr().out.split("#!/bin/bash")[1:]
    for line in (
        "--array=1-2%1",
        "--gres=gpu:a100:2",
        "--exclusive",
        "--account=me",
        "--ntasks-per-node=2",
        "--time=10",
    ):
        assert f"#SBATCH {line}\n" in cells
    assert "gpus-per-node" not in cells and "--array=1-1%1" in pretrain
    assert "--account=me" in report and "gres" not in report
    assert not (tmp_path / "run").exists()
