"""`implicit-slate ablate` from outside: tiny cells, real processes, real kills."""

import json
import signal

from implicit_slate.locks import is_locked
from tests.ablation.conftest import wait_until


def results(folder):
    return {path.parent.name: path for path in folder.glob("cells/*/result.json")}


def test_a_killed_grid_goes_on_where_it_was(grids):
    run = grids.path / "runs" / "slow"
    first = grids.start("slow", "--workers", "1")

    def one_done_and_one_half_done():
        done = results(run)
        half = [p.parents[1] for p in run.glob("cells/*/checkpoints/last.ckpt") if p.parents[1].name not in done]
        return len(done) >= 1 and half

    [killed] = wait_until(one_done_and_one_half_done)
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_until(lambda: not is_locked(killed), seconds=10)  # the cell does not survive its runner
    assert not (killed / "result.json").exists()
    before = {name: path.stat().st_mtime_ns for name, path in results(run).items()}

    status, out, err = grids.run("slow", "--workers", "1")

    assert status == 0, err
    assert f"resumed: {killed.name}" in out
    assert "resumed from step" in (killed / "log.txt").read_text()
    after = results(run)
    assert {name: after[name].stat().st_mtime_ns for name in before} == before
    assert out.count("started: ") + out.count("resumed: ") == 5 - len(before)
    rows = {row["cell"]: row for row in json.loads((run / "results.json").read_text())}
    assert [row["status"] for row in rows.values()] == ["complete"] * 4 + ["diverged"]
    assert [row["step"] for row in rows.values()] == [60] * 4 + [17]
    # The four compute the same, so the one that was killed must agree with those that were not.
    assert len({row["val/cross_entropy"] for row in rows.values() if row["status"] == "complete"}) == 1
    assert rows[killed.name]["jacobian/spectral_norm_max"] == rows[killed.name]["jacobian/spectral_norm_final"] > 1.5
    assert (run / "report" / "index.html").exists()
    assert (run / "results.csv").read_text().count("\n") == 6

    status, out, err = grids.run("slow")  # nothing left to do
    assert (status, out.count("started")) == (0, 0)


def test_two_at_once_share_a_grid_and_a_failing_cell_fails_alone(grids):
    run = grids.path / "runs" / "ends"
    both = [grids.start("ends", "--workers", "2") for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [1, 1], outputs
    trained = {path.parent.name: path.read_text().count("GPU available") for path in run.glob("cells/*/log.txt")}
    assert trained.pop("end=failed,seed=0") in (1, 2)  # whoever begins after its failure tries it again
    assert trained == {"end=well,seed=0": 1, "end=diverged,seed=0": 1}  # each was trained by one of them
    states = {name: json.loads(path.read_text())["status"] for name, path in results(run).items()}
    assert states == {"end=well,seed=0": "complete", "end=diverged,seed=0": "diverged", "end=failed,seed=0": "failed"}
    assert "ValueError: as the test asks" in (run / "cells" / "end=failed,seed=0" / "log.txt").read_text()
    assert "log.txt" in outputs[0][1]


def test_ctrl_c_stops_within_moments_and_says_how_to_go_on(grids):
    process = grids.start("slow", "--workers", "1")
    run = grids.path / "runs" / "slow"
    wait_until(lambda: list(run.glob("*/checkpoints/last.ckpt")))  # while it trains
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)  # it takes a second; a busy machine may take more
    assert process.returncode == 130
    assert err.strip() == "stopped; to continue: implicit-slate ablate slow --workers 1"
    assert not any(is_locked(path.parent) for path in run.glob("**/.lock") if path.parent != run)


def test_list_prints_and_makes_nothing(grids):
    status, out, err = grids.run("pair", "--list")
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["gradient=unrolled,seed=0", "waiting"]
    assert not (grids.path / "runs").exists()
