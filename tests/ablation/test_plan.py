"""`ablate --dry-run`: the plan of a grid and the hours it would take."""

import re
import time

import pytest

from implicit_slate.ablation import cell, plan
from implicit_slate.ablation.pool import LocalPool, Resources
from implicit_slate.errors import UserError
from implicit_slate.yaml_files import override
from tests.ablation.conftest import TINY
from tests.ablation.test_slurm import work_of


@pytest.fixture
def in_this_process(monkeypatch):
    """The pool trains the probes in this process, one after the other, to save the time of starting processes."""
    monkeypatch.setattr(LocalPool, "run", lambda pool, folders, resources: [*map(cell.run, folders.values())])


def test_the_hours_are_those_of_the_measured_steps(tmp_path, in_this_process, capsys):
    steps = {"trainer.max_steps": 72_000, "trainer.val_check_interval": 72_000}
    slow = {"model.pause": 0.05, "model.gradient": "unrolled"}
    cells = {"a": steps, "b": steps, "c": steps | slow, "d": steps | slow}
    begin = time.monotonic()
    plan.print_plan(work_of(tmp_path / "run", cells, pretrain=True), Resources(2, 1, (), 2))
    seconds = time.monotonic() - begin
    out = capsys.readouterr().out
    assert out.startswith("4 cells, 4 of them to run: 2 at a time on the CPU; 1 process each, with 1 thread\n")
    hours = {name: float(each) for name, each in re.findall(r"2 cells as (\w): (.*) hours each", out)}
    assert 1.0 <= hours["c"] <= 72_000 * seconds / 30 / 3600  # from 72,000 × 0.05 s up to all the time that passed
    together = float(re.search(r"together about (\S+) hours", out)[1])
    assert together == pytest.approx(hours["a"] + hours["c"], abs=0.06)
    assert not (tmp_path / "run").exists()


def test_a_probe_that_fails_is_one_line(tmp_path, in_this_process):
    with pytest.raises(UserError, match="the probe of a: failed at step 13 ValueError: as the test asks"):
        plan.print_plan(work_of(tmp_path / "run", {"a": {"model.fail_at": 13}}), Resources(2, 1, (), 2))


def test_cells_that_take_equally_long_are_measured_once():
    def kind(**overrides):
        return plan.kind_of(override(TINY, overrides))

    assert kind() == kind(**{"seed_everything": 3, "model.optimization.clip_norm": None})
    others = [{"model.num_slots": 5}, {"model.gradient": "unrolled"}, {"trainer.max_steps": 7}, {"model": "a.Class"}]
    assert len({kind(), *(kind(**other) for other in others)}) == 5


def test_what_an_experiment_leaves_to_lightning_may_be_null():
    assert plan.validation_interval({"val_check_interval": None, "check_val_every_n_epoch": None}, 10) == 10
