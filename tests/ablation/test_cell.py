"""A cell run in this process: how it ends, and that it survives damage to its folder."""

import contextlib
import errno
import json
import math
import os
import socket

import pytest
import torch

from callbacks import Diverged
from implicit_slate import host
from implicit_slate.ablation import cell, resume, train
from implicit_slate.ablation.configure import RESUME_POINT
from implicit_slate.cli import main
from implicit_slate.errors import UserError
from implicit_slate.locks import try_lock
from implicit_slate.processes import BUSY
from implicit_slate.training import SLATEModule
from implicit_slate.training.checkpoints import read_checkpoint
from implicit_slate.yaml_files import override
from tests.ablation.conftest import TINY, prepared
from tests.ablation.tiny import TinyData, TinyModule
from tests.faults.disk import Disk, MountRefused
from tests.faults.grid import events_of
from tests.tiny import SLATE_SIZES, Command

SLATE = {
    "model": {"class_path": "implicit_slate.training.SLATEModule", "init_args": SLATE_SIZES},
    "data": {"class_path": "tests.tiny.TinyImages"},
    "trainer": {"max_steps": 5, "accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 0},
}
OFTEN = override(TINY, {"trainer.callbacks": [{"class_path": RESUME_POINT, "init_args": {"every_seconds": 0.0}}]})


class Killed(BaseException):
    """Ends a cell as a kill does: nothing more is written."""


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def numbers(folder):
    """All results that must not depend on interruptions."""
    result = result_of(folder)
    return result["status"], result["step"], result["measures"], (folder / "curves.csv").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = prepared(tmp_path_factory.mktemp("undisturbed") / "cells" / "a", OFTEN)
    assert cell.run(folder) == 0
    return numbers(folder)


def kill(folder, monkeypatch, step):
    """Runs the cell in `folder`, with a checkpoint wherever one may be, up to `step`, at which it is killed."""
    training_step = TinyModule.training_step

    def die(module, *batch):
        if module.global_step == step:
            raise Killed
        return training_step(module, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(TinyModule, "training_step", die)
        patch.setattr(resume, "LARGEST_SHARE", math.inf)
        with pytest.raises(Killed):
            cell.run(folder)
    assert not (folder / "result.json").exists()


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The folder of a cell that was killed at step 37; its checkpoint is of step 31."""
    folder = prepared(tmp_path / "run" / "cells" / "a", OFTEN)
    kill(folder, monkeypatch, step=37)
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 31
    return folder


@pytest.mark.parametrize(
    ("gradient", "is_read"), [("unrolled", "at once"), ("implicit", "at once"), ("implicit", "late")]
)
def test_a_refinement_that_starts_from_nan_has_diverged_and_not_failed(tmp_path, monkeypatch, gradient, is_read):
    """Without a callback that checks gradients; if read late, as on a GPU, it is detected at the end of training."""
    if is_read == "late":
        monkeypatch.setattr(host, "is_free_to_read", lambda value: False)
    train = SLATEModule.training_step

    def with_nan_from_step_3(module, batch, batch_idx):
        if module.global_step == 3:
            with torch.no_grad():
                module.model.slot_attention.project_q.weight.fill_(torch.nan)
        return train(module, batch, batch_idx)

    monkeypatch.setattr(SLATEModule, "training_step", with_nan_from_step_3)
    folder = prepared(tmp_path / "a", SLATE, **{"model.gradient": gradient})
    assert cell.run(folder) == 0
    result = result_of(folder)
    assert (result["status"], result["step"]) == ("diverged", 3)
    assert "error" not in result
    assert not list(folder.glob("checkpoints/*"))  # none is saved after the bad step


@pytest.mark.parametrize(
    "error, status, step", [(Diverged(3), "diverged", 3), (ValueError("as the test asks"), "failed", 0)]
)
def test_a_cell_that_ends_badly_says_how(tmp_path, monkeypatch, error, status, step):
    def refuse(module, batch, batch_idx):
        raise error

    monkeypatch.setattr(TinyModule, "training_step", refuse)
    folder = prepared(tmp_path / "a", OFTEN)
    assert cell.run(folder) == (status == "failed")
    result = result_of(folder)
    assert (result["status"], result["step"], result["axes"]) == (status, step, {"seed": 0})
    assert result.get("error") == ("ValueError: as the test asks" if status == "failed" else None)


@pytest.mark.parametrize(("losses", "status"), [([math.nan, 1.0, math.inf], "diverged"), ([math.nan, 1.0], "complete")])
def test_a_cell_whose_last_validation_loss_is_not_finite_has_diverged(tmp_path, monkeypatch, losses, status):
    def log_loss(module, batch, batch_idx):
        module.log("val/cross_entropy", losses[min(module.global_step // 20, len(losses)) - 1])

    monkeypatch.setattr(TinyModule, "validation_step", log_loss)
    folder = prepared(tmp_path / "a", OFTEN)
    assert cell.run(folder) == 0
    result = result_of(folder)
    assert (result["status"], result["step"]) == (status, 60)
    assert "error" not in result and (folder / "checkpoints" / "last.ckpt").exists()


def test_a_failed_cell_runs_again_and_a_done_one_ends_at_once(tmp_path, monkeypatch, undisturbed):
    folder = prepared(tmp_path / "a", OFTEN)
    (folder / "result.json").write_text(json.dumps({"status": "failed", "error": "for want of memory"}))
    assert cell.run(folder) == 0
    assert numbers(folder) == undisturbed and not (folder / "progress.json").exists()
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert main(["cell", str(folder)]) == 0
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == files


def test_a_cell_that_somebody_works_on_says_so(tmp_path, capsys):
    folder = prepared(tmp_path / "a", OFTEN)
    with try_lock(folder):
        assert main(["cell", str(folder)]) == BUSY
    assert "works on this cell" in capsys.readouterr().err and not (folder / "result.json").exists()


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


DAMAGE = {
    "a kill": lambda folder: None,
    "half a checkpoint": lambda folder: halve(folder / "checkpoints" / "last.ckpt"),
    "no checkpoint": lambda folder: (folder / "checkpoints" / "last.ckpt").unlink(),
    "torn events": lambda folder: [halve(file) for file in folder.glob("events.*")],
    "empty files": lambda folder: [empty(folder / name) for name in ("result.json", "curves.csv", "config.yaml")],
    "unfinished files": lambda folder: [
        empty(folder / name) for name in (".x.json.a1b2c3d4", "checkpoints/.last.ckpt.part")
    ],
    "a claim of this host": lambda folder: (folder / ".claim").write_text(json.dumps({"host": socket.gethostname()})),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_killed_cell_ends_as_if_nothing_had_happened(killed, damage, undisturbed):
    damage(killed)
    assert cell.run(killed) == 0
    assert numbers(killed) == undisturbed
    assert not list(killed.rglob(".*.*"))  # no unfinished files are left


@pytest.mark.parametrize(
    "trainer",
    [
        {"accumulate_grad_batches": 2, "val_check_interval": 10},  # a later batch is also one of step 11
        {"check_val_every_n_epoch": None, "val_check_interval": 11},
        {"accumulate_grad_batches": 2, "check_val_every_n_epoch": None, "val_check_interval": 22},
        {"log_every_n_steps": 11},
    ],
)
def test_step_11_is_not_saved_while_another_accumulates_or_before_it_is_validated_and_logged(
    tmp_path, monkeypatch, trainer
):
    config = override(OFTEN, {f"trainer.{key}": value for key, value in trainer.items()} | {"trainer.max_steps": 16})
    whole, killed = (prepared(tmp_path / name, config) for name in ("whole", "killed"))
    kill(killed, monkeypatch, step=13)
    assert cell.run(whole) == cell.run(killed) == 0
    assert numbers(killed) == numbers(whole)


def test_a_resumed_cell_that_fails_before_it_is_restored_keeps_what_it_had(killed, monkeypatch, undisturbed):
    before, last = (killed / "curves.csv").read_text(), killed / "checkpoints" / "last.ckpt"
    step = read_checkpoint(last)["global_step"]

    def gone(data, stage):
        raise OSError("the data are gone")

    with monkeypatch.context() as patch:
        patch.setattr(TinyData, "setup", gone)
        assert cell.run(killed) == 1
    result = result_of(killed)
    assert (result["status"], result["step"]) == ("failed", step) and step > 0
    assert (killed / "curves.csv").read_text() == before
    assert cell.run(killed) == 0
    assert numbers(killed) == undisturbed


def test_the_training_time_of_earlier_sessions_counts(killed):
    last = killed / "checkpoints" / "last.ckpt"
    state = read_checkpoint(last)
    state["callbacks"]["ResumePoint"]["seconds"] += 5000
    torch.save(state, last)
    assert cell.run(killed) == 0
    assert 5000 < result_of(killed)["seconds"] < 6000


def test_callbacks_may_be_named_by_their_class_alone(tmp_path):
    folder = prepared(tmp_path / "a", TINY, **{"trainer.callbacks": ["callbacks.Divergence"]})
    assert cell.run(folder) == 0 and (folder / "checkpoints" / "last.ckpt").exists()


def test_an_axis_may_have_the_value_null(tmp_path):
    content = cell.preparation("a", {"clip": None, "seed": 0}, TINY, 1, None)
    cell.prepare(tmp_path / "a", content)
    assert cell.run(tmp_path / "a") == 0 and result_of(tmp_path / "a")["axes"] == {"clip": None, "seed": 0}


def test_a_checkpoint_that_would_run_code_fails_the_cell_and_stays(killed, tmp_path):
    last = killed / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {}, "callbacks": Command(tmp_path / "was_run")}, last)
    content = last.read_bytes()
    cell.run(killed)
    assert result_of(killed)["status"] == "failed" and "it holds posix.mkdir" in result_of(killed)["error"]
    assert not (tmp_path / "was_run").exists() and last.read_bytes() == content


def test_a_cell_killed_before_its_result_is_written_has_final_values_once(tmp_path, monkeypatch, undisturbed):
    folder = prepared(tmp_path / "a", OFTEN)

    def die(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_result", die)
        with pytest.raises(Killed):
            cell.run(folder)
    assert cell.run(folder) == 0
    assert numbers(folder) == undisturbed
    points = events_of(folder)
    assert {tag: len(found) for tag, found in points.items() if tag.startswith("summary/")}.keys() >= {
        "summary/grad_norm_max"
    }


def test_a_full_disk_is_a_line_and_the_next_start_goes_on(tmp_path, monkeypatch, capsys, undisturbed):
    try:
        disk = Disk(tmp_path, megabytes=8)
    except MountRefused as refused:
        pytest.skip(f"nothing can be mounted here: {refused}")
    fill, training_step = disk.place / "fill", TinyModule.training_step

    def fill_at_37(module, *batch):
        if module.global_step == 37:
            with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1024))
        return training_step(module, *batch)

    with disk:
        folder = prepared(disk.place / "cells" / "a", OFTEN)
        with monkeypatch.context() as patch:
            patch.setattr(TinyModule, "training_step", fill_at_37)
            assert main(["cell", str(folder)]) == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith("cannot be written (No space left on device)")
        assert not (folder / "result.json").exists()
        fill.unlink()
        assert cell.run(folder) == 0
        assert numbers(folder) == undisturbed
        events_of(folder)
        assert not list(folder.rglob(".*.*"))


def test_a_checkpoint_for_which_there_is_no_room_leaves_no_part(tmp_path, monkeypatch):
    def write_a_part(trainer, path, **options):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1024))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = prepared(tmp_path / "cells" / "a", OFTEN)
    monkeypatch.setattr("lightning.Trainer.save_checkpoint", write_a_part)
    assert train.train(folder) == "failed" and not list((folder / "checkpoints").iterdir())


def test_a_run_that_was_moved_goes_on_in_its_new_place(killed, tmp_path, monkeypatch, undisturbed):
    (tmp_path / "elsewhere").mkdir()
    run = (tmp_path / "run").rename(tmp_path / "elsewhere" / "renamed")
    monkeypatch.chdir(run)
    assert main(["cell", "cells/a"]) == 0
    assert numbers(run / "cells" / "a") == undisturbed
    assert not (tmp_path / "run").exists()
    assert str(run / "cells" / "a") in (run / "cells" / "a" / "config.yaml").read_text()


def test_a_torn_result_is_made_again_from_the_last_checkpoint(tmp_path, undisturbed):
    folder = prepared(tmp_path / "a", OFTEN)
    cell.run(folder)
    halve(folder / "result.json")
    assert cell.run(folder) == 0
    assert numbers(folder) == undisturbed


@pytest.mark.parametrize("damage", [empty, lambda file: file.unlink()])
def test_a_folder_without_a_prepared_cell_is_named(tmp_path, capsys, damage):
    folder = prepared(tmp_path / "a", OFTEN)
    damage(folder / "cell.json")
    assert main(["cell", str(folder)]) == 2
    assert f"{folder}: cell.json is missing or truncated" in capsys.readouterr().err


def test_a_cell_of_another_configuration_is_refused(tmp_path):
    folder = prepared(tmp_path / "a", OFTEN)
    with pytest.raises(UserError, match="holds a different cell"):
        prepared(folder, OFTEN, **{"model.pause": 0.5})
    with pytest.raises(UserError, match=r"config.trainer.max_steps differs"):
        prepared(folder, OFTEN | {"trainer": {k: v for k, v in OFTEN["trainer"].items() if k != "max_steps"}})
    prepared(folder, OFTEN)


@pytest.mark.parametrize(("trainer", "strategy"), [({}, "ddp"), ({"strategy": "fsdp"}, "fsdp")])
def test_several_processes_share_a_cell_by_ddp_unless_the_experiment_says_otherwise(tmp_path, trainer, strategy):
    facts = {"config": {"model": "M", "trainer": trainer}, "devices": 2, "checkpoint": None}
    assert train.configuration(tmp_path, facts, done=None)["trainer"]["strategy"] == strategy
