"""`implicit-slate evaluate`: its numbers, its files, and that it can be stopped, distributed and repeated."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data_modules import CLEVRMirror
from implicit_slate.cli import main
from implicit_slate.evaluation import run
from implicit_slate.evaluation.module import draw_slots
from implicit_slate.measures import REFERENCES
from implicit_slate.metrics import adjusted_rand_index, segments
from implicit_slate.metrics.fid import fid
from implicit_slate.models import SLATE
from implicit_slate.models.slot_model import enlarge, interpolate
from implicit_slate.training.checkpoints import load_trained
from tests.evaluation import made

EVERYTHING = "reconstruction,cross_entropy,segmentation,fid,kid"


def read_csv(checkpoint: Path) -> pd.DataFrame:
    return pd.read_csv(checkpoint.parents[1] / "evaluation" / "test.csv", dtype={"draw": str})


def test_the_numbers_are_those_of_the_model_on_the_test_split(checkpoint, root, evaluate, weights):
    """FID and KID use a small network (see `weights`); FID, KID and the real network have their own tests."""
    result = evaluate(checkpoint, "--batch-size", "4", "--metrics", EVERYTHING, *weights)
    assert made.ColourFeatures.images == 4 * made.NUM_TEST  # truth, dVAE, two draws
    data = CLEVRMirror(root, 16)
    data.setup()
    model, batch = load_trained(checkpoint).model, data.splits.test[list(range(made.NUM_TEST))]
    image, expected = batch["image"], defaultdict(list)

    def features(images):
        return made.ColourFeatures(None)((images * 255).round().byte())

    for draw in range(2):
        views = model.views(image, draw_slots(model, 0, draw, range(made.NUM_TEST)))
        expected["mse"].append(float((views.reconstruction - image).square().sum() / made.NUM_TEST))
        expected["cross_entropy"].append(float(views.cross_entropy.mean()))
        ari = adjusted_rand_index(batch["mask"], segments(views.masks), foreground_only=True)
        expected["fg_ari"].append(float(ari.mean()))
        expected["fid"].append(fid(features(image), features(views.reconstruction)))
    metrics, mse = result["metrics"], expected["mse"]
    for name, draws in expected.items():
        assert metrics[name]["draws"] == pytest.approx(draws, rel=1e-5, abs=1e-5), name
    assert metrics["mse"]["mean"] == pytest.approx(np.mean(mse), rel=1e-5)
    assert metrics["mse"]["std"] == pytest.approx(np.std(mse, ddof=1), rel=1e-3)
    assert metrics["mse_per_value"]["mean"] == pytest.approx(np.mean(mse) / 768, rel=1e-5)
    ceiling = model.ceiling(image)
    assert result["ceiling"]["mse"] == pytest.approx(float((ceiling - image).square().sum()) / made.NUM_TEST, rel=1e-5)
    assert result["ceiling"]["fid"] > 0 and len(metrics["kid"]["draws"]) == 2
    assert (result["images"], result["draws"], result["split"], result["step"]) == (made.NUM_TEST, 2, "test", 7)
    assert -1 < metrics["ssim"]["mean"] < 1 and metrics["psnr"]["mean"] > 0


def test_more_than_ten_draws_stand_in_their_order(checkpoint):
    command = ["evaluate", str(checkpoint), "--draws", "11", "--images", "2", "--metrics", "segmentation"]
    assert main(command) == 0
    result = json.loads((checkpoint.parents[1] / "evaluation" / "test.json").read_text())
    means, metrics = read_csv(checkpoint).groupby("draw")["ari"].mean(), result["metrics"]
    assert metrics["ari"]["draws"] == pytest.approx([means[str(draw)] for draw in range(11)])
    assert result["random_weights"]["ari"] == pytest.approx(means["random_weights"]) and set(result["bound"]) == {
        "fg_ari", "mbo_object", "mbo_image"
    }  # fmt: skip


def test_the_files_and_the_means_of_the_per_image_numbers(checkpoint, evaluate, capsys):
    metrics = evaluate(checkpoint)["metrics"]
    folder = checkpoint.parents[1] / "evaluation"
    assert sorted(file.name for file in folder.iterdir()) == [
        "test.csv", "test.json", "test.md", "test.png", "test_panels.npz"
    ]  # fmt: skip
    printed = capsys.readouterr()
    row, *references = (folder / "test.md").read_text().splitlines()[2:]
    assert row in printed.out and row.startswith("| run | 9 |")
    assert [reference.split(" | ")[0] for reference in references] == [f"| {name}" for name in REFERENCES.values()]
    with np.load(folder / "test_panels.npz") as panels:
        assert {name: panels[name].shape for name in panels} == {
            "truth": (6, 16, 16, 3), "reconstruction": (6, 16, 16, 3), "dvae": (6, 16, 16, 3), "masks": (6, 3, 16, 16)
        }  # fmt: skip
    assert Image.open(folder / "test.png").width > 6 * 96
    assert printed.err.count("FID is left out") == 1 and "data download fid-weights" in printed.err

    rows = read_csv(checkpoint)
    assert " ".join(rows) == "image draw mse psnr ssim cross_entropy fg_ari ari overlap objects"
    assert list(zip(rows.draw, rows.image)) == [
        (d, i) for d in ("ceiling", "0", "1", "bound", "random_weights") for i in range(made.NUM_TEST)
    ]
    assert rows[rows.draw == "ceiling"].fg_ari.isna().all()
    for draw in range(2):
        of_draw = rows[rows.draw == str(draw)]
        for name in ("mse", "psnr", "ssim", "cross_entropy", "ari"):
            assert of_draw[name].mean() == pytest.approx(metrics[name]["draws"][draw])
        overlap, objects = of_draw.overlap, of_draw.objects
        assert overlap.sum() / objects.sum() == pytest.approx(metrics["mbo_object"]["draws"][draw])
        assert (overlap / objects).mean() == pytest.approx(metrics["mbo_image"]["draws"][draw])


def test_batches_and_processes_change_nothing(checkpoint, evaluate, weights):
    """With nine images, the last batch is not full, and two processes process one image twice."""
    options = ["--metrics", EVERYTHING, *weights]
    whole, rows = evaluate(checkpoint, *options)["metrics"], read_csv(checkpoint)
    assert not any(value is None for value in whole.values())
    folder = checkpoint.parents[1] / "evaluation"

    def assert_same():
        metrics = json.loads((folder / "test.json").read_text())["metrics"]
        for name, value in whole.items():
            assert metrics[name]["draws"] == pytest.approx(value["draws"], rel=1e-4), name
        pd.testing.assert_frame_equal(read_csv(checkpoint), rows, rtol=1e-4, atol=1e-6)

    shutil.rmtree(folder)
    evaluate(checkpoint, *options, "--batch-size", "2")
    assert_same()
    shutil.rmtree(folder)
    command = ["evaluate", checkpoint, "--draws", "2", *options, "--batch-size", "2", "--devices", "2"]
    batch_job = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.made", *command],
        env=os.environ | batch_job, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| run | 9 |") == 1 and "run: 3/3 batches" in done.stderr
    assert "deprecated" not in done.stderr  # a warning would tear the line of the progress
    assert_same()


def test_a_stopped_evaluation_leaves_nothing_and_begins_again(checkpoint, evaluate, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SLATE, "generate", stopped)
        assert main(["evaluate", str(checkpoint)]) == 130
    assert capsys.readouterr().err.endswith("stopped; the same command evaluates what is not done yet\n")
    assert not list((checkpoint.parents[1] / "evaluation").iterdir())
    assert evaluate(checkpoint)["images"] == made.NUM_TEST


def test_what_is_done_is_not_done_again_until_something_changes(checkpoint, evaluate, monkeypatch):
    first = evaluate(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(SLATE, "views", lambda *_: 1 / 0)
        assert evaluate(checkpoint) == first
        run = checkpoint.parents[1]
        checkpoint = run.rename(run.with_name("moved")) / "checkpoints" / "last.ckpt"
        assert evaluate(checkpoint) == first
    assert evaluate(checkpoint, "--images", "5")["images"] == 5
    torch.save(torch.load(checkpoint, weights_only=True) | {"global_step": 8}, checkpoint)
    assert evaluate(checkpoint, "--images", "5")["step"] == 8
    folder = checkpoint.parents[1] / "evaluation"
    (folder / "test.json").write_text('{"fingerpr')  # as left by a full disk
    assert evaluate(checkpoint, "--images", "5")["step"] == 8
    (folder / "test.csv").unlink()
    evaluate(checkpoint, "--images", "5")
    assert (folder / "test.csv").exists()


def test_files_of_two_evaluations_do_not_count_as_one(checkpoint, evaluate, monkeypatch):
    first, rows, rename = evaluate(checkpoint), read_csv(checkpoint), os.replace

    def full(source, target):
        if Path(target).suffix == ".png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert main(["evaluate", str(checkpoint), "--images", "4", "--draws", "2"]) == 2
    assert len(read_csv(checkpoint)) < len(rows)
    assert evaluate(checkpoint)["metrics"] == first["metrics"]
    pd.testing.assert_frame_equal(read_csv(checkpoint), rows)


def test_masks_alone_need_no_generation(checkpoint, evaluate, monkeypatch):
    monkeypatch.setattr(run, "PANEL_ROWS", 1)
    generated, generate = [], SLATE.generate
    monkeypatch.setattr(SLATE, "generate", lambda model, slots: generated.append(len(slots)) or generate(model, slots))
    metrics = evaluate(checkpoint, "--metrics", "segmentation")["metrics"]
    assert generated == [1]  # only for the panel
    assert {name for name, value in metrics.items() if value} == {"fg_ari", "ari", "mbo_object", "mbo_image"}


def test_beside_the_masks_stand_their_bound_and_random_weights(checkpoint, tmp_path, root, evaluate):
    """The checkpoints have the untrained weights of their seed, so that of seed 0 equals the random weights."""
    result = evaluate(checkpoint, "--metrics", "segmentation")
    random, metrics = result["random_weights"], result["metrics"]
    assert {*random} == {"fg_ari", "ari", "mbo_object", "mbo_image"}
    assert {name: value["draws"][0] for name, value in metrics.items() if value} == random
    other = evaluate(made.run(tmp_path / "other", root, seed=1), "--metrics", "segmentation")
    assert other["random_weights"] == random and other["metrics"] != metrics and other["bound"] == result["bound"]
    assert {*result["bound"]} == {"fg_ari", "mbo_object", "mbo_image"} and result["mask_side"] == 4
    rows = read_csv(checkpoint).pivot(index="image", columns="draw")
    for name in ("fg_ari", "overlap"):  # for every image and draw
        assert rows[name][["0", "1", "random_weights"]].le(rows[name]["bound"] + 1e-12, axis=0).all(None)
    broadcast = evaluate(made.run(tmp_path / "broadcast", root, "SpatialBroadcastModule"), "--metrics", "segmentation")
    assert set(broadcast["bound"].values()) == {1.0}
    squares = made.run(tmp_path / "run2", made.images(tmp_path / "squares", masks=False))
    assert (result := evaluate(squares))["bound"] is None and result["random_weights"] is None


def test_bilinear_masks_are_torchs_interpolation_of_the_attention(checkpoint, root, evaluate):
    assert evaluate(checkpoint, "--metrics", "segmentation")["masks"] == "nearest"
    result = evaluate(checkpoint, "--metrics", "segmentation", "--masks", "bilinear")
    assert result["masks"] == "bilinear" and result["bound"] is None
    data, model = CLEVRMirror(root, 16), load_trained(checkpoint).model
    data.setup()
    batch = data.splits.test[list(range(made.NUM_TEST))]
    attention = model.encode(model.tokenize(batch["image"]), draw_slots(model, 0, 0, range(made.NUM_TEST)))[1]
    grid = attention.mT.unflatten(-1, (4, 4))
    masks = torch.nn.functional.interpolate(grid, (16, 16), mode="bilinear", align_corners=False)
    assert interpolate(enlarge(attention, 16), 4).equal(masks)
    expected = adjusted_rand_index(batch["mask"], segments(masks), foreground_only=True).mean()
    assert result["metrics"]["fg_ari"]["draws"][0] == pytest.approx(float(expected))
    assert float(expected) == pytest.approx(result["random_weights"]["fg_ari"])
    with np.load(checkpoint.parents[1] / "evaluation" / "test_panels.npz") as panels:
        assert (panels["masks"] == (masks[:6] * 255).round().byte().numpy()).all()


def test_slots_can_be_refined_more_often_than_in_training(checkpoint, root, evaluate):
    as_trained = evaluate(checkpoint, "--metrics", "cross_entropy")
    result = evaluate(checkpoint, "--metrics", "cross_entropy", "--iterations", "9")
    assert "applications" not in as_trained and result["applications"] == 9
    data, model = CLEVRMirror(root, 16), load_trained(checkpoint).model
    data.setup()
    tokens = model.tokenize(data.splits.test[list(range(made.NUM_TEST))]["image"])
    start = draw_slots(model, 0, 0, range(made.NUM_TEST))
    slots = model.slot_attention
    for found, number in ((as_trained, slots.solver.max_iterations), (result, 9)):
        slots.solver = replace(slots.solver, max_iterations=number)
        expected = float(model.predict(tokens, start).cross_entropy)
        assert found["metrics"]["cross_entropy"]["draws"][0] == pytest.approx(expected, rel=1e-5)


def test_slots_of_a_truncated_gradient_can_be_refined_less_often_than_it_reaches_back(tmp_path, root, evaluate):
    options = ("--metrics", "cross_entropy", "--iterations", "1")
    runs = [made.run(tmp_path / name, root, gradient=name) for name in ("truncated(2)", "unrolled")]
    truncated, unrolled = (evaluate(run, *options)["metrics"]["cross_entropy"]["draws"] for run in runs)
    assert truncated == unrolled


def test_what_a_model_or_its_data_does_not_have_is_left_out(tmp_path, root, evaluate):
    result = evaluate(made.run(tmp_path / "broadcast", root, "SpatialBroadcastModule"))
    assert result["ceiling"] is None and result["metrics"]["cross_entropy"] is None
    assert result["metrics"]["mse"]["mean"] > 0 and result["metrics"]["fg_ari"]
    result = evaluate(made.run(tmp_path / "queries", root, slot_init="queries", gradient="bilevel"))
    assert result["draws"] == 1 and result["metrics"]["mse"]["std"] is None
    result = evaluate(made.run(tmp_path / "run", made.images(tmp_path / "squares", masks=False)))
    assert result["metrics"]["fg_ari"] is None and result["metrics"]["mse"]["mean"] > 0


def test_other_data_and_another_split(checkpoint, tmp_path):
    other = made.images(tmp_path / "other", masks=False, count=20)
    (tmp_path / "x.yaml").write_text(f"data: {{class_path: data_modules.CLEVRMirror, init_args: {{root: {other}}}}}")
    out = ["--out", str(tmp_path / "out")]
    for given in (["--data.root", str(other)], ["--data", str(tmp_path / "x.yaml"), "--data.image_size", "16"]):
        evaluated = ["evaluate", *given, str(checkpoint), "--split", "val", *out, "--json", str(tmp_path / "r.json")]
        assert main(evaluated) == 0
        result = json.loads((tmp_path / "r.json").read_text())
        assert result["images"] == 3 and result["data"]["init_args"]["root"] == str(other)
        assert result == json.loads((tmp_path / "out" / "val.json").read_text())


def test_every_complete_cell_of_a_grid(tmp_path, root, weights, capsys):
    grid, cells = tmp_path / "grid", []
    for seed, status in enumerate(("complete", "diverged", "complete")):
        cells.append({"cell": f"cell{seed}", "axes": {"gradient": "implicit", "seed": seed}})
        folder = grid / "cells" / f"cell{seed}"
        made.run(folder, root, seed=seed)
        (folder / "result.json").write_text(json.dumps({**cells[-1], "status": status, "step": 7, "measures": {}}))
    (grid / "grid.json").write_text(json.dumps({"grid": "grid", "description": "", "cells": cells}))
    assert main(["evaluate", str(grid), "--draws", "1", *weights]) == 0
    printed = capsys.readouterr().out
    assert "| cell0 |" in printed and "| cell2 |" in printed and "cell1" not in printed
    results = [json.loads(file.read_text()) for file in grid.glob("cells/*/evaluation/test.json")]
    assert made.ColourFeatures.images == (1 + 2 + 2) * made.NUM_TEST  # true images once; dVAE and one draw per cell
    assert len({result["metrics"]["fid"]["mean"] for result in results}) == 2
    assert "Evaluation" in (grid / "report" / "report.md").read_text()
    last = grid / "cells" / "cell2" / "checkpoints" / "last.ckpt"
    for spoil in (lambda: last.write_bytes(last.read_bytes()[:5000]), last.unlink):
        spoil()
        assert main(["evaluate", str(grid), "--draws", "1", *weights]) == 0
        assert "cell2/checkpoints/last.ckpt: torn or gone; its cell is left out" in capsys.readouterr().err


def test_a_checkpoint_that_lightning_wrote(tmp_path, root, evaluate, monkeypatch):
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
