"""Whichever process dies, and whenever: a grid's results are those of an undisturbed run (`make faults`)."""

import json
import os
import time
import warnings

import pytest

import tests.ablation
from implicit_slate.ablation import cell
from implicit_slate.ablation.cell import prepare
from implicit_slate.yaml_files import override
from tests.ablation.conftest import Grids, wait_until
from tests.faults.disk import Disk, MountRefused
from tests.faults.grid import Killer, digest, finish, of_cell


@pytest.fixture
def disk(tmp_path):
    """A disk with simulated power cuts; None, with a warning, if nothing can be mounted."""
    try:
        with Disk(tmp_path) as disk:
            yield disk
    except MountRefused as refused:
        warnings.warn(f"no power cut was tested: {refused}", stacklevel=1)
        yield None


def test_a_grid_survives_kills_and_a_power_cut(tmp_path, disk, monkeypatch):
    """Kills cells, the server that starts them, then everything at once; the grid then continues where it was."""
    grids, killer = Grids(disk.place if disk else tmp_path), Killer(seed=0, disk=disk)
    run = grids.path / "runs" / "slow"
    os.sync()  # the experiment files are not to be lost

    def done():
        return {path.parent.name: path.read_bytes() for path in run.glob("cells/*/result.json")}

    def begun():
        return {path.parents[1].name for path in run.glob("cells/*/checkpoints/last.ckpt")} - {*done()}

    first = grids.start("slow", "--workers", "2")
    for kind in ("cell", "server", "cell"):
        wait_until(lambda: begun() and killer.kill(first, kind))  # noqa: B023
    wait_until(lambda: done() and begun())
    assert killer.kill(first, "all")
    before, killed = done(), begun()

    second = grids.start("slow", "--workers", "2")
    wait_until(lambda: second.poll() is not None or killer.kill(second, "cell"))
    out, err = second.communicate(timeout=240)

    assert second.returncode == 0, err
    assert all(f"resumed: {name}" in out for name in killed)
    assert done().items() >= before.items()
    assert (run / "report" / "index.html").exists() and (run / "results.csv").read_text().count("\n") == 6
    # Four of the cells compute the same; one of them, run alone, must do so, too.
    content = json.loads(next(run.glob("cells/*end=well*/cell.json")).read_text())
    monkeypatch.syspath_prepend(tests.ablation.__path__[0])
    for name in ("pretrain", "cells/alone"):
        earlier = json.loads((run / name / "cell.json").read_text()) if name == "pretrain" else content
        prepare(tmp_path / "calm" / name, override(earlier, {"config.model.pause": 0.0}))
        assert cell.run(tmp_path / "calm" / name) == 0
    expected = of_cell(tmp_path / "calm" / "cells" / "alone")
    found = [of_cell(folder) for folder in run.glob("cells/*end=well*")]
    assert len(found) == 4
    for one in found:
        assert {key: one[key] for key in COMPUTED} == {key: expected[key] for key in COMPUTED}


COMPUTED = ("events", "state_dict", "optimizer_states", "callbacks", "loops", "curves.csv")
"""The results that do not depend on the cell's name."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A function of a grid: the results of an undisturbed run, and its seconds per cell."""

    def run(grid, *arguments):
        if grid not in found:
            folder = tmp_path_factory.mktemp("calm") / grid
            begin = time.monotonic()
            finish(folder, grid, Killer(0), 0, 0.0, None, *arguments)
            found[grid] = digest(folder / "runs" / grid)
            found[grid] = found[grid], (time.monotonic() - begin) / len(found[grid])
        return found[grid]

    found = {}
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "kills", "arguments"), [("sixteen", 100, ()), ("ranks", 10, ("--devices", "2"))])
def test_a_grid_survives_many_kills(tmp_path, calm, grid, kills, arguments):
    """The grid is run again and again until there have been `kills` kills."""
    (expected, pause), killer, rounds = calm(grid, *arguments), Killer(seed=1), 0
    while (left := kills - killer.killed.total()) > 0:
        folder = tmp_path / str(rounds) / grid
        finish(folder, grid, killer, left, pause, None, *arguments)
        assert digest(folder / "runs" / grid) == expected
        rounds += 1
    print(f"\n{grid}: {killer.killed.total()} kills in {rounds} runs, all with the same end: {dict(killer.killed)}")


@pytest.mark.slow
def test_a_grid_survives_many_power_cuts(tmp_path, calm, disk):
    """After each power cut, the next start has only what is on the disk."""
    if disk is None:
        pytest.skip("nothing can be mounted here")
    (expected, pause), killer, rounds = calm("sixteen"), Killer(seed=2, disk=disk), 0
    while (left := 20 - killer.killed.total()) > 0:
        folder = disk.place / str(rounds)
        finish(folder, "sixteen", killer, left, 2 * pause, "all")
        assert digest(folder / "runs" / "sixteen") == expected
        rounds += 1
    print(f"\n{killer.killed.total()} power cuts in {rounds} runs, all with the same end")
