"""`implicit-slate evaluate`: its numbers, its files, and that it can be stopped, shared out and repeated."""

import csv
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import CLEVRMirror
from implicit_slate.cli import main
from implicit_slate.evaluation import run
from implicit_slate.evaluation.job import Worker, draw_slots
from implicit_slate.metrics import adjusted_rand_index, segments
from implicit_slate.models import SLATE
from implicit_slate.training.trained import load_trained
from tests.evaluation import made


def evaluate(checkpoint: Path, *options: str) -> dict:
    assert main(["evaluate", str(checkpoint), "--draws", "2", *options]) == 0
    return json.loads((checkpoint.parents[1] / "evaluation" / "test.json").read_text())


def test_the_numbers_are_those_of_the_model_on_the_test_split(checkpoint, root):
    result = evaluate(checkpoint, "--batch-size", "4")
    model = load_trained(checkpoint).model
    data = CLEVRMirror(root, 16)
    data.setup()
    batch = data.splits.test[list(range(made.NUM_TEST))]
    image, mse, cross_entropy, scores = batch["image"], [], [], []
    for draw in range(2):
        views = model.views(image, draw_slots(model, 0, draw, range(made.NUM_TEST)))
        mse.append(float((views.reconstruction - image).square().sum() / made.NUM_TEST))
        cross_entropy.append(float(views.cross_entropy.mean()))
        scores.append(float(adjusted_rand_index(batch["mask"], segments(views.masks), foreground_only=True).mean()))
    metrics = result["metrics"]
    assert metrics["mse"]["draws"] == pytest.approx(mse, rel=1e-5)
    assert metrics["mse"]["mean"] == pytest.approx(np.mean(mse), rel=1e-5)
    assert metrics["mse"]["std"] == pytest.approx(np.std(mse, ddof=1), rel=1e-3)
    assert metrics["mse_per_value"]["mean"] == pytest.approx(np.mean(mse) / 768, rel=1e-5)
    assert metrics["cross_entropy"]["draws"] == pytest.approx(cross_entropy, rel=1e-5)
    assert metrics["fg_ari"]["draws"] == pytest.approx(scores, abs=1e-6)
    ceiling = model.ceiling(image)
    assert result["ceiling"]["mse"] == pytest.approx(float((ceiling - image).square().sum()) / made.NUM_TEST, rel=1e-5)
    assert (result["images"], result["draws"], result["split"], result["step"]) == (made.NUM_TEST, 2, "test", 7)
    assert 0 < metrics["mbo_image"]["mean"] < 1 and -1 < metrics["ssim"]["mean"] < 1 and metrics["psnr"]["mean"] > 0


def test_what_is_left(checkpoint, capsys):
    evaluate(checkpoint)
    folder = checkpoint.parents[1] / "evaluation"
    assert sorted(file.name for file in folder.iterdir()) == [
        "test.csv", "test.json", "test.md", "test.png", "test_panels.npz"
    ]  # fmt: skip
    printed = capsys.readouterr()
    row, ceiling = (folder / "test.md").read_text().splitlines()[2:]
    assert row in printed.out and row.startswith("| run | 9 |") and "the dVAE alone" in ceiling
    rows = list(csv.DictReader((folder / "test.csv").open()))
    assert [row["draw"] for row in rows] == ["ceiling"] * 9 + ["0"] * 9 + ["1"] * 9
    assert all(float(row["mse"]) > 0 for row in rows) and rows[0]["fg_ari"] == "" != rows[-1]["fg_ari"]
    with np.load(folder / "test_panels.npz") as panels:
        assert {name: panels[name].shape for name in panels} == {
            "truth": (6, 16, 16, 3), "reconstruction": (6, 16, 16, 3), "dvae": (6, 16, 16, 3), "masks": (6, 3, 16, 16)
        }  # fmt: skip
    assert Image.open(folder / "test.png").width > 6 * 96
    assert printed.err.count("FID is left out") == 1 and "data download fid-weights" in printed.err


def test_the_per_image_numbers_have_the_means_of_the_result(checkpoint):
    result = evaluate(checkpoint)
    rows = list(csv.DictReader((checkpoint.parents[1] / "evaluation" / "test.csv").open()))
    for name in ("mse", "psnr", "ssim", "cross_entropy", "ari"):
        for draw in range(2):
            values = [float(row[name]) for row in rows if row["draw"] == str(draw)]
            assert np.mean(values) == pytest.approx(result["metrics"][name]["draws"][draw])


@pytest.mark.parametrize("options", [["--batch-size", "2"], ["--batch-size", "3", "--devices", "2"]])
def test_batches_and_processes_change_nothing(checkpoint, options, capsys):
    whole = evaluate(checkpoint)["metrics"]
    shutil.rmtree(checkpoint.parents[1] / "evaluation")
    in_parts = evaluate(checkpoint, *options)["metrics"]
    for name, value in whole.items():
        assert (value is None) == (in_parts[name] is None), name
        if value is not None:
            assert value["draws"] == pytest.approx(in_parts[name]["draws"], rel=1e-5), name
    assert "27/27 images" in capsys.readouterr().err


def test_a_stopped_evaluation_goes_on_where_it_was(checkpoint, root, tmp_path, units, monkeypatch, capsys):
    never_stopped = evaluate(made.run(tmp_path / "other", root), "--batch-size", "4")["metrics"]
    every_unit, do = units.copy(), Worker.do
    units.clear()

    def stopped(worker, unit):
        if len(units) == 4:
            raise KeyboardInterrupt
        return do(worker, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "do", stopped)
        assert main(["evaluate", str(checkpoint), "--draws", "2", "--batch-size", "4"]) == 130
    assert capsys.readouterr().err.endswith("stopped; the same command goes on\n")
    assert not (checkpoint.parents[1] / "evaluation" / "test.json").exists()
    resumed = evaluate(checkpoint, "--batch-size", "4")["metrics"]
    assert units == every_unit and len(every_unit) == 9
    assert resumed == never_stopped


def test_other_settings_begin_anew(checkpoint, units, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "summarise", lambda *_: 1 / 0)  # all is measured, nothing written
        with pytest.raises(ZeroDivisionError):
            main(["evaluate", str(checkpoint)])
    units.clear()
    evaluate(checkpoint, "--seed", "1")
    assert len(units) == 3


def test_what_is_done_is_not_done_again_until_the_checkpoint_changes(checkpoint, units, monkeypatch):
    first = evaluate(checkpoint)
    units.clear()
    with monkeypatch.context() as patch:
        patch.setattr(SLATE, "generate", lambda *_: 1 / 0)  # panels are not drawn again either
        assert evaluate(checkpoint) == first and not units
    evaluate(checkpoint, "--images", "5")
    assert len(units) == 3
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"global_step": 8}, checkpoint)
    assert evaluate(checkpoint, "--images", "5")["step"] == 8


def test_two_at_once_do_not_mix(checkpoint, refuses, monkeypatch):
    """While one evaluates, another is told so."""
    do, said = Worker.do, []

    def meanwhile(worker, unit):
        if not said:
            said.append(refuses(checkpoint))
        return do(worker, unit)

    monkeypatch.setattr(Worker, "do", meanwhile)
    evaluate(checkpoint)
    assert "another process is evaluating this" in said[0]


def test_a_full_disk_is_one_line_before_anything_is_done(checkpoint, monkeypatch, refuses, units):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert "No space left on device" in refuses(checkpoint) and not units
    assert not list((checkpoint.parents[1] / "evaluation").iterdir())


def test_masks_alone_need_no_generation(checkpoint, monkeypatch):
    monkeypatch.setattr(run, "PANEL_ROWS", 1)
    generated, generate = [], SLATE.generate
    monkeypatch.setattr(SLATE, "generate", lambda model, slots: generated.append(len(slots)) or generate(model, slots))
    metrics = evaluate(checkpoint, "--metrics", "segmentation")["metrics"]
    assert generated == [1]  # the panel's
    assert {name for name, value in metrics.items() if value} == {"fg_ari", "ari", "mbo_object", "mbo_image"}


def test_a_model_without_a_dvae_has_no_ceiling_and_no_cross_entropy(tmp_path, root):
    result = evaluate(made.run(tmp_path / "run", root, "SpatialBroadcastModule"))
    assert result["ceiling"] is None and result["metrics"]["cross_entropy"] is None
    assert result["metrics"]["mse"]["mean"] > 0 and result["metrics"]["fg_ari"]


def test_learned_queries_are_drawn_once(tmp_path, root):
    result = evaluate(made.run(tmp_path / "run", root, slot_init="queries", gradient="bilevel"))
    assert result["draws"] == 1 and result["metrics"]["mse"]["std"] is None


def test_data_without_masks_is_evaluated_without_ari(tmp_path):
    result = evaluate(made.run(tmp_path / "run", made.images(tmp_path / "squares", masks=False)))
    assert result["metrics"]["fg_ari"] is None and result["metrics"]["mse"]["mean"] > 0


def test_other_data_and_another_split(checkpoint, tmp_path):
    other = made.images(tmp_path / "other", masks=False, count=20)
    (tmp_path / "x.yaml").write_text(f"data: {{class_path: data_modules.CLEVRMirror, init_args: {{root: {other}}}}}")
    out = ["--out", str(tmp_path / "out")]
    for given in (["--data.root", str(other)], ["--data", str(tmp_path / "x.yaml"), "--data.image_size", "16"]):
        evaluated = ["evaluate", str(checkpoint), "--split", "val", *given, *out, "--json", str(tmp_path / "r.json")]
        assert main(evaluated) == 0
        result = json.loads((tmp_path / "r.json").read_text())
        assert result["images"] == 3 and result["data"]["init_args"]["root"] == str(other)
        assert result == json.loads((tmp_path / "out" / "val.json").read_text())


def test_every_complete_cell_of_a_grid(tmp_path, root, capsys):
    for i, status in enumerate(("complete", "diverged", "complete")):
        folder = tmp_path / "grid" / "cells" / f"cell{i}"
        made.run(folder, root, seed=i)
        (folder / "result.json").write_text(json.dumps({"cell": f"cell{i}", "status": status}))
    assert main(["evaluate", str(tmp_path / "grid"), "--draws", "1"]) == 0
    printed = capsys.readouterr().out
    assert "| cell0 |" in printed and "| cell2 |" in printed and "cell1" not in printed
    assert len(list(tmp_path.glob("grid/cells/*/evaluation/test.json"))) == 2
    assert "Evaluation" in (tmp_path / "grid" / "report" / "report.md").read_text()


def test_a_checkpoint_that_lightning_wrote(tmp_path, root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = " ".join(f"--model.{name}={value}" for name, value in made.SLATE_SIZES.items()).split()
    fit = ["fit", "--model", "implicit_slate.training.SLATEModule", *sizes, "--model.optimization.clip_norm", "0.5",
           "--data", "data_modules.CLEVRMirror", "--data.root", str(root), "--data.image_size", "16",
           "--data.batch_size", "4", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false",
           "--trainer.enable_model_summary", "false", "--trainer.accelerator", "cpu"]  # fmt: skip
    assert main(fit) == 0
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    result = evaluate(checkpoint)
    assert result["step"] == 2 and result["data"]["init_args"]["root"] == str(root)


# FID, of a small network: see `weights`. The real one has its own tests.


def test_fid_is_of_the_truth_and_each_draw_and_the_truth_is_seen_once(checkpoint, weights, root, tmp_path):
    result = evaluate(checkpoint, *weights, "--metrics", "fid,kid")
    assert made.ColourFeatures.images == 4 * made.NUM_TEST  # truth, dVAE, two draws
    metrics = result["metrics"]
    assert len(metrics["fid"]["draws"]) == 2 and metrics["fid"]["mean"] > 0 and metrics["kid"]["mean"] > 0
    assert result["ceiling"]["fid"] > 0
    other = evaluate(made.run(tmp_path / "other", root, seed=1), *weights, "--draws", "1")
    assert made.ColourFeatures.images == 6 * made.NUM_TEST  # dVAE, one draw
    assert other["metrics"]["fid"]["mean"] != pytest.approx(metrics["fid"]["mean"])


def test_fid_against_the_closed_form(checkpoint, weights, root):
    result = evaluate(checkpoint, *weights, "--draws", "1")
    model = load_trained(checkpoint).model
    data = CLEVRMirror(root, 16)
    data.setup()
    image = data.splits.test[list(range(made.NUM_TEST))]["image"]
    reconstruction = model.views(image, draw_slots(model, 0, 0, range(made.NUM_TEST))).reconstruction
    a, b = (made.ColourFeatures(None)((x * 255).round().byte())[:, :12].double() for x in (image, reconstruction))
    roots = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp_min(0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * roots
    assert result["metrics"]["fid"]["mean"] == pytest.approx(float(expected), abs=1e-5)
