"""The local pool: how it divides the machine, and what it does when processes die."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from implicit_slate.ablation import pool
from implicit_slate.ablation.pool import MOST_TRIES, LocalPool, Resources, fork_server, start
from implicit_slate.errors import UserError
from tests.ablation.conftest import prepared, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    "workers, devices, expected",
    [(None, 1, (8, 1)), (None, 2, (4, 1)), (2, 1, (2, 4)), (3, 2, (3, 1))],
)
def test_a_cpu_is_shared_by_threads(eight_cores, workers, devices, expected):
    shared = Resources.share_out(workers, devices, accelerators=0)
    assert (shared.workers, shared.threads) == expected
    assert shared.environment(0) == {"OMP_NUM_THREADS": str(expected[1])}


@pytest.mark.parametrize(
    "visible, workers, devices, accelerators, cells_per_device, expected",
    [
        (None, None, 2, 4, None, ["0,1", "2,3"]),
        (None, None, 1, 2, 2, ["0", "1", "0", "1"]),
        (None, None, 2, 5, 2, ["0,1", "2,3", "0,1", "2,3"]),
        (None, 3, 1, 2, 4, ["0", "1", "0"]),
        ("5,7", None, 1, 2, None, ["5", "7"]),
    ],
)
def test_every_worker_has_its_own_gpus_or_a_part_of_them(
    eight_cores, monkeypatch, visible, workers, devices, accelerators, cells_per_device, expected
):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    shared = Resources.share_out(workers, devices, accelerators, cells_per_device)
    found = [shared.environment(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(shared.workers)]
    assert found == expected and shared.environment(0)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "asked, message",
    [
        ((None, 99, 2), "--devices 99: this machine has 2 devices"),
        ((None, 99, 0), "--devices 99: this machine has 8 cores"),
        ((5, 2, 0), "--workers 5: there are 8 cores, enough for 4 cells at a time"),
        ((3, 1, 2), "--workers 3: there are 2 devices, enough for 2 cells at a time; --cells-per-device lets"),
        ((9, 1, 2, 4), "--workers 9: there are 2 devices, enough for 8 cells"),
        ((None, 1, 0, 4), "--cells-per-device 4: is for GPUs"),
    ],
)
def test_more_processes_than_there_is_room_for_are_refused(eight_cores, asked, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Resources.share_out(*asked)


def ranks_of(cell):
    """The two processes of a cell by rank, once both exist."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if str(cell) in child.cmdline():
                found[int(child.environ().get("LOCAL_RANK", 0))] = child
        except psutil.NoSuchProcess:
            continue
    return found if len(found) == 2 else None


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_cell_on_two_devices_survives_the_death_of_any_of_its_processes(tmp_path, monkeypatch, rank):
    """Lightning's DDP on two CPU processes."""
    for name, value in (("SLURM_NTASKS", "1"), ("SLURM_PROCID", "0"), ("SLURM_JOB_ID", "1")):
        monkeypatch.setenv(name, value)  # as if the pool ran in a batch job
    cell = prepared(tmp_path / "run" / "cells" / "a", devices=2, **{"model.pause": 0.04})
    events = []
    local = LocalPool(lambda name, event: events.append(event))  # without `fork_server`: no imports are needed
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(local.run, {"a": cell}, Resources(1, 2, (), 2))
        wait_until(lambda: (cell / "checkpoints" / "last.ckpt").exists())
        ranks = wait_until(lambda: ranks_of(cell))
        ranks[rank].kill()
        assert psutil.wait_procs(ranks.values(), timeout=60)[1] == []  # neither outlives the other
        running.result()
    assert events[0] == "started" and events[-2:] == ["resumed", "complete"]
    result = json.loads((cell / "result.json").read_text())
    assert (result["status"], result["step"]) == ("complete", 60)
    assert "MEMBER: 2/2" in (cell / "log.txt").read_text()


def test_a_cell_that_gets_further_each_time_may_die_any_number_of_times(tmp_path, monkeypatch):
    cell = prepared(tmp_path / "run" / "cells" / "a", **{"model.pause": 0.02})
    last, started, events = cell / "checkpoints" / "last.ckpt", [], []
    monkeypatch.setattr(pool, "start", lambda *arguments: started.append(start(*arguments)) or started[-1])
    local = LocalPool(lambda name, event: events.append(event))
    with fork_server(), ThreadPoolExecutor(1) as thread:
        running, before = thread.submit(local.run, {"a": cell}, Resources(1, 1, (), 2)), None
        for deaths in range(1, MOST_TRIES + 2):
            wait_until(lambda before=before: last.exists() and last.stat().st_mtime_ns != before)
            started[-1].kill()
            started[-1].join()
            before = last.stat().st_mtime_ns
            wait_until(lambda deaths=deaths: len(started) > deaths)
        running.result()
    assert events.count("resumed") == MOST_TRIES + 1 and events[-1] == "complete"


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_the_end(folder, *arguments):
    """After the last step, at which every process saves a checkpoint again."""
    (folder / "progress.json").write_text('{"step": 60}')
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(os.urandom(8))
    die()


@pytest.mark.parametrize("death", [die, die_at_the_end])
def test_a_cell_that_dies_again_and_again_has_failed(tmp_path, monkeypatch, death):
    cell, events = prepared(tmp_path / "run" / "cells" / "a"), []
    monkeypatch.setattr(pool, "_run_cell", death)
    with fork_server():
        LocalPool(lambda name, event: events.append(event)).run({"a": cell}, Resources(1, 1, (), 2))
    error = json.loads((cell / "result.json").read_text())["error"]
    assert error == "its process ended 3 times without getting further, at last with status -9"
    assert events[-1] == "failed" and events.count("started") + events.count("resumed") == MOST_TRIES


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.0, 1.0], ids=["while they import", "a second later"])
def test_no_process_of_a_cell_on_several_devices_outlives_a_killed_launcher_by_five_seconds(tmp_path, moment):
    cell = prepared(tmp_path / "run" / "cells" / "a", devices=2, **{"model.pause": 0.1})
    run = f"with fork_server(): LocalPool(print).run({{'a': Path({str(cell)!r})}}, Resources(1, 2, (), 2))"
    code = f"from pathlib import Path\nfrom {pool.__name__} import *\n{run}"
    launcher = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_until(lambda: len(psutil.Process(launcher.pid).children(recursive=True)) == 5)  # including the two ranks
    time.sleep(moment)
    processes = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.wait()
    assert psutil.wait_procs(processes, timeout=5)[1] == []


@pytest.mark.parametrize("parent, status", [(os.getpid, 0), (lambda: 2**22 + 1, 1)], ids=["alive", "gone"])
def test_a_server_whose_launcher_was_killed_before_it_began_ends_at_once(parent, status):
    """At once: its imports would take ten seconds."""
    command = [sys.executable, "-c", "import implicit_slate.ablation.server"]
    assert subprocess.run(command, env=os.environ | {"IMPLICIT_SLATE_PARENT": str(parent())}).returncode == status


def test_a_server_that_replaces_a_killed_one_knows_its_launcher_too(tmp_path):
    def start():
        pool.start(tmp_path, Resources(1, 1, (), 2), 0).join()
        [server] = servers()
        return server

    server = start()
    server.kill()
    wait_until(lambda: server.status() == psutil.STATUS_ZOMBIE)  # multiprocessing itself waits for its exit status
    assert start().environ()["IMPLICIT_SLATE_PARENT"] == str(os.getpid())


def test_threads_may_start_cells_at_the_same_time(tmp_path):
    """As `tune` does, with one thread for each worker."""
    with fork_server(), ThreadPoolExecutor(8) as threads:
        starts = [threads.submit(pool.start, tmp_path, Resources(1, 1, (), 2), 0) for _ in range(60)]
        for start in starts:
            start.result().kill()
    assert "IMPLICIT_SLATE_PARENT" not in os.environ


def test_a_launcher_of_ones_own_may_start_cells_by_way_of_other_processes(tmp_path):
    """As with Ray, whose workers have the launcher's environment but are other processes."""
    cell = [sys.executable, "-m", "implicit_slate.cli", "cell", str(tmp_path / "none")]
    with fork_server():
        worker = subprocess.run(
            [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.call({cell!r}))"],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
    assert worker.returncode == 2 and "none" in worker.stderr


def test_a_check_whose_process_is_killed_is_tried_again_and_then_said_in_a_line(monkeypatch):
    monkeypatch.setattr(pool, "_check", die)
    with fork_server(), pytest.raises(UserError, match="was killed 3 times"):
        pool.check({}, {})


def servers():
    forkserver.ensure_running()  # in case the death of the previous server had not been noticed
    return [p for p in psutil.Process().children() if p.status() != "zombie" and "forkserver" in str(p.cmdline())]


def test_the_death_of_the_server_while_it_is_asked_does_not_end_the_launcher(tmp_path):
    folder = prepared(tmp_path / "run" / "cells" / "a")
    with fork_server():
        [server] = wait_until(servers)
        server.kill()  # not noticed yet
        pool.start(folder, Resources(1, 1, (), 1), worker=0).join()
    assert json.loads((folder / "result.json").read_text())["status"] == "complete"
