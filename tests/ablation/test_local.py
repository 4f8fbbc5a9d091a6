"""The pool of this machine: how it divides the machine, and what it does when processes die."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from implicit_slate.ablation.launchers import local
from implicit_slate.ablation.launchers.local import LocalPool, Resources
from implicit_slate.errors import UserError
from tests.ablation.conftest import prepared, wait_until


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    "workers, devices, expected",
    [(None, 1, (8, 1)), (None, 2, (4, 1)), (2, 1, (2, 4)), (16, 1, (16, 1))],
)
def test_a_cpu_is_shared_by_threads(eight_cores, workers, devices, expected):
    shared = Resources.share_out(workers, devices, accelerators=0)
    assert (shared.workers, shared.threads) == expected
    assert shared.environment(0) == {"OMP_NUM_THREADS": str(expected[1])}


@pytest.mark.parametrize(
    "visible, workers, devices, accelerators, expected",
    [
        (None, None, 2, 4, ["0,1", "2,3"]),
        (None, 3, 1, 2, ["0", "1", "0"]),  # more workers than GPUs share them
        ("5,7", None, 1, 2, ["5", "7"]),
    ],
)
def test_every_worker_has_its_own_gpus(eight_cores, monkeypatch, visible, workers, devices, accelerators, expected):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    shared = Resources.share_out(workers, devices, accelerators)
    found = [shared.environment(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(shared.workers)]
    assert found == expected and shared.threads is None


@pytest.mark.parametrize("accelerators, message", [(2, "this machine has 2 devices"), (0, "this machine has 8 cores")])
def test_more_processes_than_there_is_room_for_are_refused(eight_cores, accelerators, message):
    with pytest.raises(UserError, match=f"--devices 99: {message}"):
        Resources.share_out(None, 99, accelerators)


def ranks_of(cell):
    """The two processes of a cell by their rank, once both are there."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if str(cell) in child.cmdline():
                found[int(child.environ().get("LOCAL_RANK", 0))] = child
        except psutil.NoSuchProcess:
            continue
    return found if len(found) == 2 else None


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_cell_on_two_devices_survives_the_death_of_any_of_its_processes(tmp_path, rank):
    """Lightning's DDP on two CPU processes."""
    cell = prepared(tmp_path / "run" / "cells" / "a", devices=2, **{"model.pause": 0.04})
    events = []
    pool = LocalPool(lambda name, event: events.append(event))  # not entered: nothing need be imported before the fork
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(pool.run, {"a": cell}, Resources(1, 2, (), 2))
        wait_until(lambda: (cell / "checkpoints" / "last.ckpt").exists())
        ranks = wait_until(lambda: ranks_of(cell))
        ranks[rank].kill()
        assert psutil.wait_procs(ranks.values(), timeout=60)[1] == []  # none outlives the other
        running.result()
    assert events[0] == "started" and events[-2:] == ["resumed", "complete"]
    result = json.loads((cell / "result.json").read_text())
    assert (result["status"], result["step"]) == ("complete", 60)
    assert "MEMBER: 2/2" in (cell / "log.txt").read_text()


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_check_whose_process_is_killed_is_tried_again_and_then_said_in_a_line(monkeypatch):
    monkeypatch.setattr(local, "_check", die)
    with LocalPool(print) as pool, pytest.raises(UserError, match="was killed 3 times"):
        pool.check({}, {})


def test_the_death_of_the_server_while_it_is_asked_does_not_end_the_launcher(tmp_path):
    folder = prepared(tmp_path / "run" / "cells" / "a")
    with LocalPool(print):
        [server] = wait_until(
            lambda: [p for p in psutil.Process().children() if "forkserver import" in " ".join(p.cmdline())]
        )
        server.kill()  # nobody has noticed yet
        local.start(folder, Resources(1, 1, (), 1), worker=0).join()
    assert json.loads((folder / "result.json").read_text())["status"] == "complete"
