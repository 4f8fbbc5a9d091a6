"""Locks of folders: only one process works in a folder, on this host or another."""

import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

from implicit_slate import locks
from implicit_slate.errors import UserError
from implicit_slate.locks import is_locked, try_lock


def claim_of(folder, host, age):
    (folder / ".claim").write_text(json.dumps({"host": host, "process": 1}))
    os.utime(folder / ".claim", (time.time() - age,) * 2)


def process_in(folder) -> subprocess.Popen:
    """A process that has locked the folder; it ends with its standard input."""
    code = "import sys; from pathlib import Path; from implicit_slate import locks; locks.HEARTBEAT_SECONDS = 0.05; "
    code += "lock = locks.try_lock(Path(sys.argv[1])); input()"
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE)
    while not is_locked(folder) or not (folder / ".claim").exists():
        time.sleep(0.02)
    return process


def test_a_lock_is_held_by_one_and_looking_makes_nothing(tmp_path):
    assert not is_locked(tmp_path) and not is_locked(tmp_path / "nowhere") and not list(tmp_path.iterdir())
    with try_lock(tmp_path):
        assert is_locked(tmp_path) and try_lock(tmp_path) is None
        assert locks.holder(tmp_path).startswith(f"process {os.getpid()} on ")
    assert not is_locked(tmp_path) and not (tmp_path / ".claim").exists()
    with try_lock(tmp_path):
        pass


def test_a_glance_is_not_taken_for_a_process(tmp_path, monkeypatch):
    glance = os.open(tmp_path / ".lock", os.O_CREAT | os.O_RDONLY)
    fcntl.flock(glance, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(glance))  # it ends meanwhile
    with try_lock(tmp_path) as lock:
        assert lock is not None


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with process_in(tmp_path) as process:
        process.kill()
    assert not is_locked(tmp_path) and (tmp_path / ".claim").exists()
    with try_lock(tmp_path) as lock:
        assert lock is not None


@pytest.mark.parametrize("age, taken", [(5, True), (1000, False)])
def test_a_claim_of_another_host_counts_while_it_is_touched(tmp_path, age, taken):
    claim_of(tmp_path, "another", age)
    (tmp_path / ".lock").touch()
    assert is_locked(tmp_path) is taken
    lock = try_lock(tmp_path)
    assert (lock is None) is taken
    if lock is not None:
        with lock:
            assert "another" not in (tmp_path / ".claim").read_text()
    (tmp_path / ".claim").unlink(missing_ok=True)
    assert not is_locked(tmp_path)  # the attempt holds nothing


def test_of_two_hosts_that_take_over_a_claim_the_one_that_wrote_last_keeps_it(tmp_path):
    with process_in(tmp_path) as process:
        claim_of(tmp_path, "another", age=0)
        assert process.wait(20) == 1 and is_locked(tmp_path)
    (second := tmp_path / "second").mkdir()
    with try_lock(second):
        claim_of(second, "another", age=0)
    assert is_locked(second)  # though it ended before it could see the other's claim


def test_a_claim_is_touched_while_it_is_held(tmp_path, monkeypatch):
    """Even after one failed read of it."""
    read, seen = locks.read_json, []

    def read_or_fail(path):
        seen.append(path)
        if len(seen) == 2:  # the first check for another claim
            raise UserError("a stale handle of a shared file system")
        return read(path)

    monkeypatch.setattr(locks, "read_json", read_or_fail)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    with try_lock(tmp_path):
        os.utime(tmp_path / ".claim", (0, 0))
        end = time.monotonic() + 10
        while (tmp_path / ".claim").stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert (tmp_path / ".claim").stat().st_mtime > 0


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        try_lock(tmp_path / "nowhere")
