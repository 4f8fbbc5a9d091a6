"""The pool of this machine: how it divides the machine, and what it does when processes die."""

import os
import signal

import pytest

from implicit_slate.ablation.launchers import local
from implicit_slate.ablation.launchers.local import LocalPool, Resources
from implicit_slate.errors import UserError


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


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_check_whose_process_is_killed_is_tried_again_and_then_said_in_a_line(monkeypatch):
    monkeypatch.setattr(local, "_check", die)
    with LocalPool(print) as pool, pytest.raises(UserError, match="was killed 3 times"):
        pool.check([], [])
