"""What the report makes of evaluated checkpoints, from files made in the format that `evaluate` leaves."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from implicit_slate import load_run
from implicit_slate.errors import UserError
from implicit_slate.report import write_report
from implicit_slate.report.pictures import mosaic, same_images, same_images_figure
from implicit_slate.report.tables import best_methods, evaluation_spreads, not_comparable, paper_table
from tests.report.made import Grid, all_links, arrays, markdown, table_under, write_evaluation

SLATE = {"class_path": "implicit_slate.training.SLATEModule", "init_args": {"num_slots": 4}}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    """A grid over data sets with its report: CLEVR-Mirror is evaluated, COCO at another size, ShapeStacks not yet."""
    grid = Grid(tmp_path_factory.mktemp("runs") / "datasets")
    sets = ("clevr_mirror", "shapestacks", "coco")
    for data, mode, seed in itertools.product(sets, ("unrolled", "implicit"), (0, 1)):
        folder = grid.cell(mode, seed, data=data, steps=(0, 40), config=SLATE)
        worse = 10.0 * (mode == "unrolled")
        if data == "clevr_mirror":
            scores = {"mse": 20.0 + worse + seed, "fid": 30.0 + worse + 20 * seed, "psnr": 25 - worse}
            facts = {"ceiling": {"mse": 5.0, "fid": None}, "notes": ["KID is left out: too many images."]}
            write_evaluation(folder, arrays=arrays(seed + int(worse)), **scores, **facts)
        elif data == "coco":
            write_evaluation(folder, data="COCO", image_size=32, mse=900.0 + worse, images=50)
    write_report(grid.done())
    return grid.path


@pytest.fixture
def small(tmp_path):
    """Makes a grid of `unrolled` and `implicit`: of each the MSE of every seed; None stands for a diverged cell."""

    def make(config=SLATE, **scores):
        grid = Grid(tmp_path)
        folders = {}
        for mode, values in scores.items():
            for seed, mse in enumerate(values):
                folder = grid.cell(mode, seed, "complete" if mse else "diverged", config=config)
                folders[f"{mode}{seed}"] = folder
                if mse:
                    write_evaluation(folder, mse=mse, psnr=100 - mse)
        return grid.done(), folders

    return make


def test_a_report_without_evaluations_has_none_of_their_sections(tmp_path):
    grid = Grid(tmp_path)
    grid.cell(data="clevr_mirror")
    page = write_report(grid.done()).read_text()
    assert "Evaluation" not in page and "results table" not in page
    assert not (tmp_path / "report" / "evaluation.csv").exists()


class TestReport:
    def test_the_papers_table_has_ours_beside_the_papers_numbers_where_they_compare(self, datasets):
        rows = table_under(markdown(datasets), "## The paper's results table")
        assert rows["CLEVR-Mirror"] == [
            "315", "40 ± 14<small>2 seeds</small>", "50 ± 14<small>2 seeds</small>", "22.19", "25.89",
            "20.50 ± 0.71<small>2 seeds</small>", "30.50 ± 0.71<small>2 seeds</small>", "10.66", "67.04",
        ]  # fmt: skip
        assert rows["ShapeStacks"] == ["–", "–", "–", "34.2", "34.76", "–", "–", "108.67", "312.14"]
        assert rows["COCO"] == [
            "50", "–", "–", "–", "–", "900<small>2 seeds</small>", "910<small>2 seeds</small>", "–", "–"
        ]  # fmt: skip
        assert "COCO: images of 32×32, the paper's are 96×96" in markdown(datasets)
        assert "Ours were trained for 40 steps." in markdown(datasets)

    def test_each_data_set_has_a_computed_verdict(self, datasets):
        judgements = {row["data"]: row["judgement"] for row in paper_table(load_run(datasets), "test")}
        clevr, coco = judgements["CLEVR-Mirror"], judgements["COCO"]
        assert clevr.verdict == coco.verdict == "shown in part"
        assert judgements["ShapeStacks"].verdict == "not measured"
        assert "FID: 40 to 60 when unrolled, 30 to 50 when implicit; the seeds overlap." in clevr.sentence
        assert "MSE: 30 to 31 when unrolled, 20 to 21 when implicit; every seed is higher" in clevr.sentence
        assert coco.sentence == "MSE: 910 when unrolled, 900 when implicit; every seed is higher when unrolled."

    def test_the_evaluation_table_names_the_images_the_ceiling_and_what_is_best(self, datasets):
        section = markdown(datasets).split("## Evaluation\n")[1]
        assert "on the test split, N = 50 or 315 images; a cell's value is the mean over 2 draws" in section
        assert "| MSE ↓ | PSNR (dB) ↑ | FID ↓ |" in section
        for row in (
            "| unrolled | 2 of 2 | 315 | 30.5 ± 0.71<small>30 – 31</small> | 15 | 50 ± 14<small>40 – 60</small> |",
            "| implicit | 2 of 2 | 315 | **20.5 ± 0.71**<small>20 – 21</small> | **25** | 40 ± 14",
            "| dVAE alone (ceiling) | 4 | 315 | 5 | – | – |",
            "| unrolled | 2 | 0.12 | 0.12 | 0.12 |",  # the spread over draws, apart
        ):
            assert f"\n| data = clevr_mirror {row}" in section
        assert "KID is left out: too many images (4 of 8)." in section

    def test_evaluation_csv_holds_every_number(self, datasets):
        with open(datasets / "report" / "evaluation.csv") as file:
            rows = {(r["setting"], r["gradient"], r["measurement"]): r for r in csv.DictReader(file)}
        row = rows["data = clevr_mirror", "implicit", "fid"]
        assert [row[key] for key in ("split", "images", "count", "mean")] == ["test", "315", "2", "40.0"]
        assert float(row["deviation"]) == pytest.approx(200**0.5)
        assert rows["data = clevr_mirror", "implicit", "fid_std"]["mean"] == "0.125"
        ceiling = rows["data = clevr_mirror", "", "mse"]
        assert (ceiling["mean"], ceiling["count"]) == ("5.0", "4")

    def test_every_link_and_picture_exists(self, datasets):
        targets = all_links(datasets)
        assert any(target.endswith("evaluation/test.json") for target in targets)
        for target in targets:
            assert (datasets / "report" / target).exists(), target
        assert "](qualitative_data_clevr_mirror.png)" in markdown(datasets)
        assert "unrolled, data = clevr_mirror, seed 0; implicit, data = clevr_mirror, seed 0." in markdown(datasets)

    def test_what_evaluations_differ_in_is_said(self, small):
        run, folders = small(unrolled=(5.0, 6.0), implicit=(3.0, None))
        write_evaluation(folders["unrolled1"], mse=6.0, step=20, images=100, arrays=arrays(images=4))
        write_evaluation(folders["implicit1"], mse=9.0)
        write_evaluation(folders["implicit0"], mse=3.0, arrays=arrays(images=3))
        write_evaluation(folders["implicit0"], split="val", mse=2.0)
        write_report(run)
        text = markdown(run)
        assert "**Not the same images** in all cells: they do not compare, and nothing is bold." in text
        assert "**Not the end of training**: unrolled, seed 1 at step 20 of 40." in text
        assert "Evaluated, but not counted because not complete: implicit, seed 1." in text
        assert "| all cells | implicit | 1 of 2<small>1 diverged</small> | 315 | 3 |" in text
        assert "different images in all cells: no picture" in text
        assert text.index("on the test split") < text.index("on the validation split")


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
def test_best_is_only_who_is_better_in_every_seed(small, unrolled, implicit, best):
    run = load_run(small(unrolled=unrolled, implicit=implicit)[0])
    for key in ("mse", "psnr"):  # of psnr higher is better
        assert best_methods(run, "test", key) == ({"all cells": best} if best else {})


def test_nothing_is_best_on_different_images(small):
    path, folders = small(unrolled=(5.0, 6.0), implicit=(3.0, 4.0))
    write_evaluation(folders["implicit1"], mse=4.0, images=100)
    run = load_run(path)
    assert not_comparable(run, "test") == ["all cells"] and best_methods(run, "test", "mse") == {}
    assert list(evaluation_spreads(run, "test").query("measurement == 'mse'")["images"]) == [315, 100, 315]


class TestPaperTable:
    @pytest.mark.parametrize(
        "model, data, row",
        [
            ("SLATEModule", "MirrorScenes", None),  # scenes of our own are not the paper's data
            ("SLATEModule", "CLEVRMirror", ["3<small>1 seed</small>", "–", "10.66", "67.04"]),  # without an axis, too
            ("SpatialBroadcastModule", "CLEVRMirror", ["3<small>1 seed</small>", "–", "–", "–"]),  # another model
        ],
    )
    def test_the_papers_numbers_stand_beside_its_model_on_its_data(self, small, model, data, row):
        path, folders = small({"class_path": f"implicit_slate.training.{model}"}, implicit=(3.0,))
        write_evaluation(folders["implicit0"], data=data, mse=3.0)
        write_report(path)
        text = markdown(path)
        found = table_under(text, "## The paper's results table")["CLEVR-Mirror"] if "results table" in text else None
        assert (found and found[5:]) == row and ("the paper's model is SLATE" in text) == ("Broadcast" in model)

    def test_a_verdict_counts_a_diverged_cell_as_worse(self, tmp_path):
        grid = Grid(tmp_path)
        for mode, seed in itertools.product(("unrolled", "implicit"), (0, 1)):
            diverged = (mode, seed) == ("unrolled", 1)
            folder = grid.cell(mode, seed, "diverged" if diverged else "complete", data="clevr_mirror", config=SLATE)
            if not diverged:
                write_evaluation(folder, mse=5.0 - 2 * (mode == "implicit") + seed)
        judgement = paper_table(load_run(grid.done()), "test")[0]["judgement"]
        assert "MSE: 5 or diverged (1 of 2) when unrolled, 3 to 4 when implicit; every seed" in judgement.sentence


class TestSameImages:
    def test_both_modes_are_of_a_seed_that_both_have(self, small):
        path, folders = small(unrolled=(None, 5.0, 6.0), implicit=(3.0, None, 4.0))
        for cell in ("unrolled1", "unrolled2", "implicit0", "implicit2"):
            write_evaluation(folders[cell], mse=3.0, arrays=arrays())
        run = load_run(path)
        assert [run.place(cell) for cell in same_images(run, "test", "all cells")] == [
            "unrolled, seed 2", "implicit, seed 2"
        ]  # fmt: skip

    @pytest.mark.parametrize("slots, lines", [(3, 1), (8, 2)])
    def test_modes_stand_side_by_side_or_with_many_slots_below_each_other(self, small, slots, lines):
        path, folders = small(unrolled=(5.0,), implicit=(3.0,))
        made = {name: arrays(seed, slots) for seed, name in enumerate(folders)}
        for name, folder in folders.items():
            write_evaluation(folder, mse=3.0, arrays=made[name])
        run = load_run(path)
        figure = same_images_figure(run, same_images(run, "test", "all cells"))
        titles = [ax.get_xlabel() for ax in figure.axes]
        assert titles == (["", "unrolled", "implicit"] if lines == 1 else ["", "unrolled", "", "implicit"])
        truth, unrolled = (np.asarray(ax.images[0].get_array()) for ax in figure.axes[:2])
        assert truth.shape == (4 * 17, 17, 3) and unrolled.shape == (4 * 17, (1 + slots) * 17, 3)
        assert np.array_equal(truth[:16, :16], made["unrolled0"]["truth"][0])
        assert np.array_equal(unrolled[17:33, :16], made["unrolled0"]["reconstruction"][1])
        mask = made["unrolled0"]["masks"][0, 1, :, :, None] / 255
        faded = made["unrolled0"]["truth"][0] * mask + 255 * (1 - mask)
        assert np.abs(unrolled[:16, 34:50] - faded).max() <= 1

    def test_images_are_parted_by_white(self):
        picture = mosaic(np.zeros((2, 3, 4, 4, 3), np.uint8))
        assert picture.shape == (10, 15, 3) and (picture[4] == 255).all() and (picture[:, 9] == 255).all()
        assert (picture == 0).sum() == 2 * 3 * 16 * 3

    @pytest.mark.parametrize("fault", ["no archive", "key", "shape", "type"])
    def test_damaged_arrays_are_refused_in_one_line(self, small, fault):
        path, folders = small(implicit=(3.0,))
        made = arrays()
        if fault == "key":
            del made["masks"]
        elif fault == "shape":
            made["masks"] = made["masks"][:, :, :8]
        elif fault == "type":
            made["truth"] = made["truth"] / 255
        write_evaluation(folders["implicit0"], mse=3.0, arrays=made)
        file = folders["implicit0"] / "evaluation" / "test_panels.npz"
        if fault == "no archive":
            file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(UserError) as error:
            same_images(load_run(path), "test", "all cells")
        assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, complaint",
    [
        ('{"metrics": {}}', "KeyError: 'images'"),
        ('{"metrics": {"mse": 3.0}, "images": 3}', "'float' object has no attribute 'get'"),
        ('{"metrics": {"mse": {"mean": "x"}}, "images": 3}', "could not convert string to float: 'x'"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(small, content, complaint):
    path, folders = small(implicit=(3.0,))
    file = folders["implicit0"] / "evaluation" / "test.json"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        load_run(path)
    assert str(file) in str(error.value) and complaint in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_finite_is_not_a_value_and_what_is_torn_is_not_there(small):
    path, folders = small(implicit=(3.0, 4.0))
    write_evaluation(folders["implicit0"], mse=float("nan"), psnr=7.0)
    (folders["implicit1"] / "evaluation" / "test.json").write_text('{"metr')
    [row] = load_run(path).evaluations.to_dict("records")
    assert np.isnan(row["mse"]) and row["psnr"] == 7.0 and row["of"] == "slots"
