"""Evaluations in the report, from synthetic files in the format of `evaluate`."""

import csv
import itertools
from pathlib import Path

import pytest

from implicit_slate import load_run
from implicit_slate.report.pictures import same_images
from implicit_slate.report.tables import (
    best_methods,
    evaluation_spreads,
    not_comparable,
    paired_differences,
    paper_table,
)
from tests.report.made import Grid, all_links, markdown, table_under, write_evaluation

SLATE = {"class_path": "implicit_slate.training.SLATEModule", "init_args": {"num_slots": 4}}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    """A grid over data sets with its report: CLEVR-Mirror is evaluated, COCO is at another size, ShapeStacks is not."""
    grid = Grid(tmp_path_factory.mktemp("runs") / "datasets")
    sets = ("clevr_mirror", "shapestacks", "coco")
    for data, mode, seed in itertools.product(sets, ("unrolled", "implicit"), (0, 1)):
        folder = grid.cell(mode, seed, data=data, steps=(0, 40), config=SLATE)
        worse = 10.0 * (mode == "unrolled")
        if data == "clevr_mirror":
            scores = {"mse": 20.0 + worse + seed, "fid": 30.0 + worse + 20 * seed, "psnr": 25 - worse}
            facts = {"ceiling": {"mse": 5.0, "fid": None}, "random_weights": {"fg_ari": 0.125}, "fg_ari": 0.5}
            facts |= {"bound": {"fg_ari": 0.75}, "notes": ["KID is left out: too many images."]}
            write_evaluation(folder, picture=True, **scores, **facts)
        elif data == "coco":
            write_evaluation(folder, data="COCO", image_size=32, mse=900.0 + worse, images=50)
    grid.report()
    return grid.path


@pytest.fixture
def small(grid):
    """Makes a grid of `unrolled` and `implicit` from the MSE of every seed of each; None is a diverged cell."""

    def make(config=SLATE, axes=(), **scores) -> dict[str, Path]:
        folders = {}
        for mode, values in scores.items():
            for seed, mse in enumerate(values):
                folder = grid.cell(mode, seed, "complete" if mse else "diverged", config=config, **dict(axes))
                folders[f"{mode}{seed}"] = folder
                if mse:
                    write_evaluation(folder, mse=mse, psnr=100 - mse)
        grid.done()
        return folders

    return make


def test_a_report_without_evaluations_has_none_of_their_sections(grid):
    grid.cell(data="clevr_mirror")
    text = grid.report()
    assert "Evaluation" not in text and "results table" not in text
    assert not (grid.path / "report" / "evaluation.csv").exists()


def test_the_papers_table_has_ours_beside_the_papers_numbers_where_they_compare(datasets):
    rows = table_under(markdown(datasets), "## The paper's results table")
    assert rows["CLEVR-Mirror"] == [
        "315", "40 ± 14<small>2 seeds</small>", "50 ± 14<small>2 seeds</small>", "22.19", "25.89",
        "20.50 ± 0.71<small>2 seeds</small>", "30.50 ± 0.71<small>2 seeds</small>", "10.66", "67.04",
    ]  # fmt: skip
    assert rows["ShapeStacks"] == ["–", "–", "–", "34.2", "34.76", "–", "–", "108.67", "312.14"]
    assert rows["COCO"] == ["50", *"–" * 4, "900<small>2 seeds</small>", "910<small>2 seeds</small>", "–", "–"]
    assert "COCO: images of 32×32, the paper's are 96×96" in markdown(datasets)
    assert "Ours were trained for 40 steps." in markdown(datasets)


def test_each_data_set_has_a_computed_verdict(datasets):
    judgements = {row["data"]: row["judgement"] for row in paper_table(load_run(datasets), "test")}
    assert {data: found.verdict for data, found in judgements.items()} == {
        "CLEVR-Mirror": "shown in part", "COCO": "shown in part", "ShapeStacks": "not measured"
    }  # fmt: skip
    assert judgements["CLEVR-Mirror"].sentence == (
        "FID: 40 to 60 when unrolled, 30 to 50 when implicit; the seeds overlap. "
        "MSE: 30 to 31 when unrolled, 20 to 21 when implicit; every seed is higher when unrolled."
    )
    assert judgements["COCO"].sentence.startswith("MSE: 910 when unrolled, 900 when implicit")


def test_the_evaluation_table_names_the_images_the_ceiling_and_what_is_best(datasets):
    section = markdown(datasets).split("## Evaluation\n")[1]
    assert "on the test split, N = 50 or 315 images; a cell's value is the mean over 2 draws" in section
    assert "| MSE ↓ | PSNR (dB) ↑ | FID ↓ | FG-ARI ↑ |" in section
    for row in (
        "| unrolled | 2 of 2 | 315 | 30.5 ± 0.71<small>30 – 31</small> | 15 | 50 ± 14<small>40 – 60</small> | 0.500 |",
        "| implicit | 2 of 2 | 315 | **20.5 ± 0.71**<small>20 – 21</small> | **25** | 40 ± 14",
        "| dVAE alone (ceiling) | 4 | 315 | 5 | – | – | – |",
        "| masks of this resolution, at best | 4 | 315 | – | – | – | 0.750 |",
        "| random weights | 4 | 315 | – | – | – | 0.125 |",
        "| unrolled | 2 | 0.12 | 0.12 | 0.12 | 0.12 |",  # the spread over draws, separately
    ):
        assert f"\n| data = clevr_mirror {row}" in section
    assert "KID is left out: too many images (4 of 8)." in section


def test_evaluation_csv_holds_every_number(datasets):
    with open(datasets / "report" / "evaluation.csv") as file:
        rows = {(r["setting"], r["gradient"], r["measurement"]): r for r in csv.DictReader(file)}
    row = rows["data = clevr_mirror", "implicit", "fid"]
    assert [row[key] for key in ("split", "images", "count", "mean")] == ["test", "315", "2", "40.0"]
    assert float(row["deviation"]) == pytest.approx(200**0.5)
    assert rows["data = clevr_mirror", "implicit", "fid_std"]["mean"] == "0.125"
    ceiling = rows["data = clevr_mirror", "", "mse"]
    assert (ceiling["mean"], ceiling["count"]) == ("5.0", "4")


def test_every_link_exists_and_both_modes_are_shown_on_the_same_images(datasets):
    for target in all_links(datasets):
        assert (datasets / "report" / target).exists(), target
    text = markdown(datasets).split("### The same images in each mode")[1].split("<details>")[0]
    for mode in ("unrolled", "implicit"):
        assert f"data=clevr_mirror,seed=0/evaluation/test.png)\\\n**{mode}**, data = clevr_mirror, seed 0." in text
    assert text.count("test.png") == 2
    assert (datasets / "report" / "index.html").read_text().count("data:image/png;base64,") == 2


def test_what_evaluations_differ_in_is_said(small, grid):
    folders = small(unrolled=(5.0, 6.0), implicit=(3.0, None))
    write_evaluation(folders["unrolled1"], mse=6.0, step=20, images=100, picture=True)
    write_evaluation(folders["implicit1"], mse=9.0)
    write_evaluation(folders["implicit0"], mse=3.0, picture=True)
    write_evaluation(folders["implicit0"], split="val", mse=2.0)
    text = grid.report()
    assert "**Not the same images**, masks or numbers of iterations in all cells: they are not comparable" in text
    assert "**Not the end of training**: unrolled, seed 1 at step 20 of 40." in text
    assert "Evaluated, but not counted because not complete: implicit, seed 1." in text
    assert "| all cells | implicit | 1 of 2<small>1 diverged</small> | 315 | 3 |" in text
    assert "The same images" not in text
    assert text.index("on the test split") < text.index("on the validation split")


def test_only_a_cell_that_is_not_complete_is_evaluated(small, grid):
    write_evaluation(small(implicit=(None,))["implicit0"], mse=9.0, picture=True)
    assert "not counted because not complete: implicit, seed 0." in grid.report()


@pytest.mark.parametrize(
    "unrolled, implicit, best",
    [
        ((5.0, 6.0), (3.0, 4.0), "implicit"),
        ((1.0, 2.0), (3.0, 4.0), "unrolled"),
        ((3.5, 6.0), (3.0, 4.0), None),
        ((5.0,), (3.0,), None),
        ((None, 6.0), (3.0, 4.0), "implicit"),
        ((None, None), (3.0, 4.0), "implicit"),
        ((5.0, 6.0), (3.0, None), None),
        ((), (3.0, 4.0), None),
    ],
)
def test_best_is_only_who_is_better_in_every_seed(small, grid, unrolled, implicit, best):
    small(unrolled=unrolled, implicit=implicit)
    for key in ("mse", "psnr"):  # higher PSNR is better
        assert best_methods(load_run(grid.path), "test", key) == ({"all cells": best} if best else {})


def test_nothing_is_best_on_different_images(small, grid):
    folders = small(unrolled=(5.0, 6.0), implicit=(3.0, 4.0))
    write_evaluation(folders["implicit1"], mse=4.0, images=100)
    run = load_run(grid.path)
    assert not_comparable(run, "test") == ["all cells"] and best_methods(run, "test", "mse") == {}
    assert list(evaluation_spreads(run, "test").query("measurement == 'mse'")["images"]) == [315, 100, 315]


def test_different_images_are_compared_neither_seed_by_seed_nor_beside_the_paper(small, grid):
    folders = small(axes={"data": "clevr_mirror"}, unrolled=(5.0, 6.0), implicit=(3.0, 4.0))

    def compared() -> tuple[set, dict]:
        run = load_run(grid.path)
        return set(paired_differences(run, "test")["measurement"]), paper_table(run, "test")[0]

    measurements, row = compared()
    assert {"mse", "psnr"} <= measurements and row["judgement"].verdict == "shown in part" and not row["reason"]
    for seed, mse in enumerate((3.0, 4.0)):
        write_evaluation(folders[f"implicit{seed}"], mse=mse, images=100)
    measurements, row = compared()
    assert "val/cross_entropy" in measurements and not {"mse", "psnr"} & measurements
    assert row["judgement"].verdict == "not measured" and "do not all use the same images" in row["reason"]
    assert "do not all use the same images" in grid.report()
    assert "implicit reaches a lower FID" not in markdown(grid.path)


@pytest.mark.parametrize(
    ("how", "shown"), [({"masks": "bilinear"}, "bilinear masks"), ({"applications": 64}, "64 iterations")]
)
def test_evaluations_that_were_made_in_different_ways_are_not_averaged(small, grid, how, shown):
    folders = small(unrolled=(5.0, 6.0), implicit=(3.0, 4.0))
    write_evaluation(folders["implicit1"], mse=4.0, **how)
    assert best_methods(load_run(grid.path), "test", "mse") == {}
    text = grid.report()
    assert "| implicit | 1 of 2 | 315 | 3 | 97 |" in text
    assert f"| implicit | 1 of 2 | 315<small>{shown}</small> | 4 | – |" in text


@pytest.mark.parametrize(
    "model, data, row",
    [
        ("SLATEModule", "MirrorScenes", None),  # our own scenes are not the paper's data
        ("SLATEModule", "CLEVRMirror", ["3<small>1 seed</small>", "–", "10.66", "67.04"]),  # also without an axis
        ("SpatialBroadcastModule", "CLEVRMirror", ["3<small>1 seed</small>", "–", "–", "–"]),  # another model
    ],
)
def test_the_papers_numbers_stand_beside_its_model_on_its_data(small, grid, model, data, row):
    folders = small({"class_path": f"implicit_slate.training.{model}"}, implicit=(3.0,))
    write_evaluation(folders["implicit0"], data=data, mse=3.0)
    text = grid.report()
    found = table_under(text, "## The paper's results table")["CLEVR-Mirror"] if "results table" in text else None
    assert (found and found[5:]) == row and ("the paper's model is SLATE" in text) == ("Broadcast" in model)


def test_a_verdict_counts_a_diverged_cell_as_worse(small, grid):
    small(axes={"data": "clevr_mirror"}, unrolled=(5.0, None), implicit=(3.0, 4.0))
    judgement = paper_table(load_run(grid.path), "test")[0]["judgement"]
    assert "MSE: 5 or diverged (1 of 2) when unrolled, 3 to 4 when implicit; every seed" in judgement.sentence


@pytest.mark.parametrize(
    "evaluated, shown",
    [
        (["unrolled1", "unrolled2", "implicit0", "implicit2"], ["unrolled, seed 2", "implicit, seed 2"]),
        (["unrolled1", "implicit2"], ["unrolled, seed 1", "implicit, seed 2"]),
    ],
)
def test_both_modes_are_shown_of_a_seed_that_both_have_or_else_of_their_first(small, grid, evaluated, shown):
    folders = small(unrolled=(None, 5.0, 6.0), implicit=(3.0, None, 4.0))
    for cell in evaluated:
        write_evaluation(folders[cell], mse=3.0, picture=True)
    run = load_run(grid.path)
    assert [run.place(cell) for cell in same_images(run, "test")["all cells"]] == shown
