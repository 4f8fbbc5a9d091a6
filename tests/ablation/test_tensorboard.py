"""A finished grid as a real TensorBoard server shows it."""

import json
import re
import subprocess
import sys
import urllib.request

import pytest
from torch.utils.tensorboard import SummaryWriter

from implicit_slate.ablation.cell import make_result
from implicit_slate.ablation.hparams import log_hparams
from implicit_slate.measures import headline_columns
from tests.ablation.conftest import wait_until

TAGS = ["jacobian/spectral_norm", "jacobian/spectral_radius", "residual", "evaluations", "grad_norm",
        "val/cross_entropy", "val/mse"]  # fmt: skip


def write_cell(run, axes, status, loss):
    name = ",".join(f"{axis}={value}" for axis, value in axes.items())
    folder = run / "cells" / name
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps({"cell": name, "axes": axes}))
    curves = {tag: {step: loss - step for step in (0, 10)} for tag in TAGS}
    with SummaryWriter(str(folder)) as writer:
        for tag, points in curves.items():
            for step, value in points.items():
                writer.add_scalar(tag, value, step)
    log_hparams(folder, make_result(folder, curves, status, step=10, seconds=2.0))


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Ask the server of a grid with one complete and one diverged cell: `ask(path, **json)` gives its answer."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    write_cell(run, {"gradient": "implicit", "clip": "on", "iterations": 7, "seed": 0}, "complete", 80.0)
    write_cell(run, {"gradient": "unrolled", "clip": "off", "iterations": 7, "seed": 1}, "diverged", float("nan"))
    arguments = ["--logdir", str(run), "--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
    command = [sys.executable, "-m", "tensorboard.main", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = next(line for line in server.stdout if "http://" in line)
        address = re.search(r"http://\S+/", line).group()

        def ask(path, **question):
            headers = {"Content-Type": "application/json"}
            data = json.dumps(question).encode() if question else None
            with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=10) as answer:
                return json.load(answer)

        wait_until(lambda: len(ask("data/plugin/scalars/tags")) == 2, seconds=60)
        yield ask
    finally:
        server.kill()
        server.communicate()


def test_a_run_is_a_cell_and_has_its_curves(ask):
    tags = ask("data/plugin/scalars/tags")
    assert set(tags) == {
        "cells/gradient=implicit,clip=on,iterations=7,seed=0",
        "cells/gradient=unrolled,clip=off,iterations=7,seed=1",
    }
    for found in tags.values():
        assert set(TAGS) <= set(found)


def test_the_columns_of_hparams_are_the_axes_and_the_measures(ask):
    experiment = ask("data/plugin/hparams/experiment", experimentName="")
    assert {column["name"] for column in experiment["hparamInfos"]} == {"gradient", "clip", "iterations", "seed"}
    assert [(metric["name"]["tag"], metric["displayName"]) for metric in experiment["metricInfos"]] == [
        (f"final/{key}", key) for key in headline_columns()
    ]


def test_the_rows_of_hparams_compare_the_cells(ask):
    groups = ask(
        "data/plugin/hparams/session_groups",
        experimentName="",
        allowedStatuses=["STATUS_SUCCESS", "STATUS_FAILURE"],
        colParams=[{"hparam": axis, "includeInResult": True} for axis in ("gradient", "iterations", "seed")],
        startIndex=0,
        sliceSize=10,
    )["sessionGroups"]
    assert len(groups) == 2
    by_mode = {group["hparams"]["gradient"]: group for group in groups}
    implicit, unrolled = by_mode["implicit"], by_mode["unrolled"]
    assert implicit["hparams"]["seed"] == "0" and implicit["hparams"]["iterations"] == 7.0
    values = {metric["name"]["tag"]: metric["value"] for metric in implicit["metricValues"]}
    assert values["final/val/cross_entropy"] == 70.0 and values["final/grad_norm_max"] == 80.0
    assert implicit["sessions"][0]["status"] == "STATUS_SUCCESS"
    assert unrolled["sessions"][0]["status"] == "STATUS_FAILURE"
    assert "final/val/cross_entropy" not in {metric["name"]["tag"] for metric in unrolled["metricValues"]}
