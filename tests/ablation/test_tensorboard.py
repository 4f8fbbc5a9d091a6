"""A finished grid in a real TensorBoard server."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

from implicit_slate.ablation.resume import CurveLogger
from implicit_slate.ablation.tensorboard import link_cells, log_configuration, log_hparams, run_names, to_show
from implicit_slate.measures import headline_columns
from implicit_slate.run_folder import RunFolder, make_result
from tests.ablation.conftest import wait_until
from tests.browser import browser

TAGS = ["epoch", "jacobian/spectral_norm", "jacobian/spectral_radius", "residual", "evaluations", "grad_norm",
        "val/cross_entropy", "val/mse"]  # fmt: skip


DEEP_TEXT = """(function text(node) {
  const children = [...node.childNodes, ...(node.shadowRoot?.childNodes ?? [])];
  return children.map((child) => child.data ?? text(child)).join(" ");
})(document.body)"""


def write_cell(run, axes, status, loss):
    name = ",".join(f"{axis}={value}" for axis, value in axes.items())
    folder = run / "cells" / name
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps({"cell": name, "axes": axes}))
    curves = {tag: {step: loss - step for step in (0, 10)} for tag in TAGS}
    logger = CurveLogger(str(folder), name="", version="", default_hp_metric=False)
    log_configuration(logger.experiment, f"model:\n  gradient: {axes['gradient']}\n")
    for step in (0, 10):
        logger.log_metrics({tag: points[step] for tag, points in curves.items()}, step)
    logger.finalize("success")
    log_hparams(folder, make_result(folder, curves, status, step=10, seconds=2.0))


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Runs `implicit-slate tensorboard` on a grid with a complete and a diverged cell. `ask(path, **json)` returns the
    server's answer; `ask.address` is its address for a browser."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    write_cell(run, {"gradient": "implicit", "clip": "on", "iterations": 7, "seed": 0}, "complete", 80.0)
    write_cell(run, {"gradient": "unrolled", "clip": "off", "iterations": 7, "seed": 1}, "diverged", float("nan"))
    command = [sys.executable, "-m", "implicit_slate.cli", "tensorboard", str(run), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = next(line for line in server.stdout if "http://" in line)
        address = re.search(r"http://\S+/", line).group()

        def ask(path, **question):
            headers = {"Content-Type": "application/json"}
            data = json.dumps(question).encode() if question else None
            with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=10) as answer:
                return json.load(answer)

        ask.address = address
        wait_until(lambda: len(ask("data/plugin/scalars/tags")) == 2, seconds=60)
        yield ask
    finally:
        server.kill()
        server.communicate()


IMPLICIT, UNROLLED = "implicit/all-tricks/seed0", "unrolled/no-clip/seed1"


def test_a_run_is_a_cell_by_a_short_name_and_has_its_curves(ask):
    tags = ask("data/plugin/scalars/tags")
    assert set(tags) == {IMPLICIT, UNROLLED}
    for found in tags.values():
        assert {*TAGS, "throughput/steps_per_second"} - {"epoch", "evaluations"} <= set(found)
        assert min(found) == "grad_norm", "the first card"


def test_the_configuration_is_there_as_text(ask):
    [event] = ask(f"data/plugin/text/text?run={quote(IMPLICIT, safe='')}&tag=configuration%2Ftext_summary")
    assert "gradient: implicit" in event["text"]


def test_it_opens_with_a_page_of_stability_optimisation_and_throughput_and_compares_cells(ask):
    with browser() as page:
        page.show(ask.address)
        for category in ("stability", "optimisation", "throughput"):
            page.until(f"{DEEP_TEXT}.includes({category!r})")
        assert page.run("location.hash").startswith("#custom_scalars") and "slots" not in page.run(DEEP_TEXT)
        page.show(f"{ask.address}#hparams")
        page.until(f"{DEEP_TEXT}.includes('val/cross_entropy')")
        assert all(word in page.run(DEEP_TEXT) for word in ("implicit", "unrolled", "clip", "seed"))


@pytest.mark.parametrize(
    "axes, names",
    [
        ([{"gradient": "a", "clip": c} for c in ("on", "off")], ["a/all-tricks", "a/no-clip"]),
        (
            [{"gradient": "exact(broyden, 7)", "rate": r, "seed": 0} for r in (0.1, 1)],
            ["exact(broyden,7)/rate=0.1/seed0", "exact(broyden,7)/rate=1/seed0"],
        ),
        ([{"gradient": "a", "solver": s, "seed": 2} for s in ("x", "y")], ["a,x/seed2", "a,y/seed2"]),
        ([{"data": "a/b"}], ["0"]),
    ],
)
def test_names_say_what_varies(axes, names):
    assert list(run_names({str(i): found for i, found in enumerate(axes)}).values()) == names


def test_links_follow_a_run_that_moves_and_grows(tmp_path):
    def linked(run, seeds):
        cells = {f"seed={seed}": {"gradient": "implicit", "seed": seed} for seed in seeds}
        for cell in cells:
            (run / "cells" / cell).mkdir(parents=True, exist_ok=True)
        tree = link_cells(RunFolder(run, cells))
        return {str(link.relative_to(tree)): link.resolve() for link in tree.rglob("*") if link.is_symlink()}

    first, second = tmp_path / "a", tmp_path / "b"
    assert linked(first, [0]) == {"implicit/seed0": first / "cells" / "seed=0"}
    first.rename(second)
    assert (second / "tensorboard" / "implicit" / "seed0").resolve() == second / "cells" / "seed=0"
    assert set(linked(second, [0, 1])) == {"implicit/seed0", "implicit/seed1"}
    assert set(linked(second, [1])) == {"implicit/seed1"}


def test_of_several_grids_and_other_runs_each_is_shown_once(tmp_path):
    for grid in ("a", "b"):
        write_cell(tmp_path / grid, {"gradient": "implicit", "seed": 0}, "complete", 1.0)
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "events.out.tfevents.1").touch()
    with to_show(tmp_path) as logdir:
        shown = {Path(folder) for folder, _, files in os.walk(logdir, followlinks=True) if files}
        assert {str(folder.relative_to(logdir)) for folder in shown} == {"a/implicit/seed0", "b/implicit/seed0", "fit"}
    assert not logdir.exists()


def test_the_columns_of_hparams_are_the_axes_and_the_measures(ask):
    experiment = ask("data/plugin/hparams/experiment", experimentName="")
    assert {column["name"] for column in experiment["hparamInfos"]} == {"gradient", "clip", "iterations", "seed"}
    assert [(metric["name"]["tag"], metric["displayName"]) for metric in experiment["metricInfos"]] == [
        (f"summary/{key}", key) for key in headline_columns()
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
    assert values["summary/val/cross_entropy"] == 70.0 and values["summary/grad_norm_max"] == 80.0
    assert implicit["sessions"][0]["status"] == "STATUS_SUCCESS"
    assert unrolled["sessions"][0]["status"] == "STATUS_FAILURE"
    assert "summary/val/cross_entropy" not in {metric["name"]["tag"] for metric in unrolled["metricValues"]}
