"""How a machine is shared out among workers."""

import pytest

from implicit_slate.ablation.workers import Resources
from implicit_slate.errors import UserError


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    "workers, devices, expected",
    [(None, 1, (8, 1)), (None, 2, (4, 1)), (2, 1, (2, 4)), (16, 1, (16, 1))],
)
def test_a_cpu_is_shared_by_threads(workers, devices, expected):
    shared = Resources.share_out(workers, devices, accelerators=0)
    assert (shared.workers, shared.threads) == expected and shared.visible_devices(0) is None


def test_every_worker_has_its_own_gpus():
    shared = Resources.share_out(None, 2, accelerators=4)
    assert shared.workers == 2 and [shared.visible_devices(w) for w in range(2)] == ["0,1", "2,3"]


def test_more_workers_than_gpus_share_them():
    shared = Resources.share_out(3, 1, accelerators=2)
    assert [shared.visible_devices(w) for w in range(3)] == ["0", "1", "0"]


def test_only_visible_gpus_are_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    shared = Resources.share_out(None, 1, accelerators=2)
    assert [shared.visible_devices(w) for w in range(2)] == ["5", "7"]


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match="--devices 4: this machine has 2"):
        Resources.share_out(None, 4, accelerators=2)
