"""The queue: every cell is claimed once, and no dead worker keeps one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from implicit_slate.ablation.matrix import load_grid
from implicit_slate.ablation.run_folder import RunFolder
from implicit_slate.ablation.study import Queue, check_storage
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically

MANY = """\
axes: {{n: {{{values}}}}}
grids: {{many: {{experiment: experiment.yaml, cells: n}}}}
"""


def open_run(path):
    grid = load_grid(path / "ablations.yaml", "many")
    folder = RunFolder(path / "run", grid.cells)
    return folder, folder.begin(grid, devices=1)


@pytest.fixture
def many(grids):
    """A grid of 12 cells."""
    values = ", ".join(f"{n}: {{model.pause: {n}}}" for n in range(12))
    (grids.path / "ablations.yaml").write_text(MANY.format(values=values))
    return grids.path


def finish(queue, claim, status="complete"):
    result = {"cell": claim.cell, "status": status, "val/cross_entropy": 1.0}
    write_atomically(queue.folder.cell(claim.cell) / "result.json", json.dumps(result))
    queue.finish(claim)


def claim_all(path, name, url=None):
    """What a worker does, with nothing to compute; it notes what it claimed."""
    folder, study = open_run(Path(path))
    queue = Queue(folder, study, url)
    claimed = []
    while claim := queue.claim():
        claimed.append(claim.cell)
        time.sleep(0.02)  # so that every process gets some
        finish(queue, claim)
    queue.close()
    (Path(path) / name).write_text(json.dumps(claimed))


def claim_one_and_wait(path):
    folder, study = open_run(Path(path))
    (Path(path) / "claimed").write_text(Queue(folder, study).claim().cell)
    time.sleep(60)


def claims_of(path, count, url=None):
    context = get_context("spawn")
    processes = [context.Process(target=claim_all, args=(str(path), f"worker{n}", url)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [json.loads((path / f"worker{n}").read_text()) for n in range(count)]


def test_several_processes_claim_every_cell_once(many):
    claims = claims_of(many, 3)
    folder, _ = open_run(many)
    assert sorted(cell for claimed in claims for cell in claimed) == sorted(folder.cells)


def test_a_cell_is_nobody_elses_until_it_is_given_back(many):
    folder, study = open_run(many)
    queue = Queue(folder, study)
    claims = [queue.claim() for _ in folder.cells]
    assert {claim.cell for claim in claims} == set(folder.cells) and queue.claim() is None
    queue.finish(claims[5])  # without a result: it was interrupted
    assert queue.claim().cell == claims[5].cell
    finish(queue, claims[7])
    assert queue.claim() is None
    queue.close()


def test_what_was_begun_comes_first(many):
    folder, study = open_run(many)
    begun = list(folder.cells)[8]
    write_atomically(folder.cell(begun) / "checkpoints" / "last.ckpt", b"")
    queue = Queue(folder, study)
    assert queue.claim().cell == begun and queue.claim().cell == list(folder.cells)[0]
    queue.close()


def test_optuna_knows_how_cells_ended(many):
    folder, study = open_run(many)
    queue = Queue(folder, study)
    for status in ("complete", "diverged", "failed"):
        finish(queue, queue.claim(), status)
    trials = queue.study.trials
    assert [trial.state.name for trial in trials[:4]] == ["COMPLETE", "PRUNED", "FAIL", "WAITING"]
    assert trials[0].value == 1.0 and trials[0].user_attrs["n"] == 0
    queue.close()


def test_nothing_is_run_that_has_a_result(many):
    folder, study = open_run(many)
    for cell in list(folder.cells)[:11]:
        write_atomically(folder.cell(cell) / "result.json", json.dumps({"cell": cell, "status": "diverged"}))
    queue = Queue(folder, study)
    assert queue.claim().cell == list(folder.cells)[11] and queue.claim() is None
    queue.close()


def test_a_killed_workers_cell_is_claimed_again_at_once(many):
    process = get_context("spawn").Process(target=claim_one_and_wait, args=(str(many),))
    process.start()
    while not (many / "claimed").exists():
        assert process.is_alive()
        time.sleep(0.05)
    folder, study = open_run(many)
    queue = Queue(folder, study)
    others = [queue.claim().cell for _ in range(11)]
    assert queue.claim() is None and (many / "claimed").read_text() not in others
    process.kill()
    process.join()
    assert queue.claim().cell == (many / "claimed").read_text()
    queue.close()


def test_another_hosts_cell_is_claimed_again_when_its_heart_stops(many, monkeypatch):
    folder, study = open_run(many)
    queue = Queue(folder, study)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        lost = queue.claim()
    lost.lock.release()  # as a lock looks that this host cannot see
    queue._mine.clear()
    assert lost.cell not in [queue.claim().cell for _ in range(11)] and queue.claim() is None
    monkeypatch.setattr(queue.storage, "grace_period", 1)
    time.sleep(2.5)
    assert queue.claim().cell == lost.cell
    queue.close()


@pytest.mark.parametrize(
    "url, message",
    [
        ("postgresql://nobody:secret@127.0.0.1:1/none", "refused"),
        ("nonsense", "not a database URL"),
        ("nosuchdb://host/name", "no driver for 'nosuchdb'"),
        ("sqlite:////nonexistent/folder/study.db", "unable to open database file"),
    ],
)
def test_a_storage_that_does_not_answer_is_one_line(url, message):
    with pytest.raises(UserError) as error:
        check_storage(url)
    assert message in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


@pytest.fixture
def postgresql():
    """The URL of a database server of our own."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "/none/x").parent]
    initdb, server = programs[-1] / "initdb", programs[-1] / "postgres"
    if not initdb.exists():
        pytest.skip("PostgreSQL is not installed here")
    with socket.socket() as free, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        user = {"user": "nobody"} if os.getuid() == 0 else {}  # it refuses to run as root
        if user:
            shutil.chown(folder, "nobody")
        data = f"{folder}/data"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
        subprocess.run([initdb, "-D", data, "-U", "slots", "-A", "trust", "--no-sync"], check=True, **quiet)
        command = [server, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
        process = subprocess.Popen(command, **quiet)
        url = f"postgresql://slots@127.0.0.1:{port}/postgres"
        for _ in range(100):
            try:
                check_storage(url)
                break
            except UserError:
                time.sleep(0.1)
        yield url
        process.send_signal(signal.SIGINT)  # its quick way to stop
        process.wait(timeout=20)


def test_a_real_database_server_is_a_storage(many, postgresql):
    claims = claims_of(many, 2, postgresql)
    folder, _ = open_run(many)
    assert sorted(cell for claimed in claims for cell in claimed) == sorted(folder.cells)
    assert not (folder.path / "study.db").exists()
