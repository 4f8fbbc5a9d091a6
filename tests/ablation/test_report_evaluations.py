"""What the report makes of evaluated checkpoints, from made files in the format that `evaluate` leaves."""

import csv
import itertools
import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from implicit_slate.ablation.report import write_report
from implicit_slate.ablation.report.document import Heading, Paragraph, Table, Verdicts
from implicit_slate.ablation.report.evaluation_summary import best_method
from implicit_slate.ablation.report.methods import IMPLICIT, UNROLLED
from implicit_slate.ablation.report.paper_table import paper_results
from implicit_slate.ablation.report.qualitative import qualitative
from implicit_slate.ablation.report.reading import read_run
from implicit_slate.errors import UserError
from tests.ablation.test_report import write_cell, write_results

SLATE = {"model": {"class_path": "implicit_slate.training.SLATEModule", "init_args": {"num_slots": 4}}}


def write_evaluation(run: Path, row: dict, split="test", data="CLEVRMirror", image_size=96, arrays=None, **facts):
    """One cell's evaluation; `facts` are metrics by name, or other keys of the file."""
    folder = run / "cells" / row["cell"] / "evaluation"
    folder.mkdir(exist_ok=True, parents=True)
    metrics = dict.fromkeys(("mse", "psnr", "ssim", "fid", "kid", "cross_entropy", "fg_ari"))
    for key in metrics.keys() & facts.keys():
        mean = facts.pop(key)
        metrics[key] = {"mean": mean, "std": 0.125, "draws": [mean - 0.125, mean + 0.125]}
    content = {
        "checkpoint": "last.ckpt", "step": 40, "split": split, "images": 315, "draws": 2, "metrics": metrics,
        "data": {"class_path": f"data_modules.{data}", "init_args": {"image_size": image_size}}, "ceiling": None,
        "notes": [], "git": "0123abc", "versions": {}, "seconds": 1.0,
    }  # fmt: skip
    (folder / f"{split}.json").write_text(json.dumps(content | facts))
    (folder / f"{split}.csv").write_text("image,mse\n0,1\n")
    if arrays is not None:
        np.savez_compressed(folder / f"{split}_panels.npz", **arrays)
        Image.new("RGB", (20, 20), "blue").save(folder / f"{split}.png")


def arrays(seed=0, slots=3, images=4):
    """The same truth for all; what a cell makes of it goes by `seed`."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).integers(0, 256, (images, 16, 16, 3), np.uint8)
    weights = rng.dirichlet(np.ones(slots), (images, 16, 16)).transpose(0, 3, 1, 2)
    made = rng.integers(0, 256, truth.shape, np.uint8)
    return {"truth": truth, "reconstruction": made, "masks": (weights * 255).astype(np.uint8)}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    """A grid over data sets with its report: CLEVR-Mirror is evaluated, COCO at another size, ShapeStacks not yet."""
    run = tmp_path_factory.mktemp("runs") / "datasets"
    rows = []
    sets = ("clevr_mirror", "shapestacks", "coco")
    for data, mode, seed in itertools.product(sets, ("unrolled", "implicit"), (0, 1)):
        row = write_cell(run, mode, seed, data=data, steps=(0, 40))
        (run / "cells" / row["cell"] / "config.yaml").write_text(json.dumps(SLATE))
        rows.append(row)
        worse = 10.0 * (mode == "unrolled")
        made = arrays(seed + int(worse))
        if data == "clevr_mirror":
            scores = {"mse": 20.0 + worse + seed, "fid": 30.0 + worse + 20 * seed, "psnr": 25 - worse}
            facts = {"ceiling": {"mse": 5.0, "fid": None}, "notes": ["KID is left out: too many images."]}
            write_evaluation(run, row, arrays=made, **scores, **facts)
        elif data == "coco":
            write_evaluation(run, row, data="COCO", image_size=32, mse=900.0 + worse, images=50)
    write_report(write_results(run, rows))
    return run


@pytest.fixture(scope="module")
def markdown(datasets) -> str:
    return (datasets / "report" / "report.md").read_text()


def table_under(markdown: str, heading: str) -> dict[str, list[str]]:
    """The first table behind a heading: its rows by their first cells."""
    lines = markdown.split(f"{heading}\n")[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))
    return {cells[0]: cells[1:] for cells in ([c.strip() for c in row.strip("|").split(" | ")] for row in rows)}


def test_a_report_without_evaluations_has_none_of_their_sections(tmp_path):
    page = write_report(write_results(tmp_path, [write_cell(tmp_path, data="clevr_mirror")])).read_text()
    assert "Evaluation" not in page and "results table" not in page
    assert not (tmp_path / "report" / "evaluation.csv").exists()


def test_the_papers_table_has_ours_beside_the_papers_numbers(markdown):
    rows = table_under(markdown, "## The paper's results table")
    assert rows["CLEVR-Mirror"] == [
        "315", "40 ± 14 (2 seeds)", "50 ± 14 (2 seeds)", "22.19", "25.89",
        "20.50 ± 0.71 (2 seeds)", "30.50 ± 0.71 (2 seeds)", "10.66", "67.04",
    ]  # fmt: skip
    assert rows["ShapeStacks"] == ["–", "–", "–", "34.2", "34.76", "–", "–", "108.67", "312.14"]
    assert "**It does not state how many images its FID is of**" in markdown
    assert "Ours were trained for 40 steps." in markdown


def test_the_papers_numbers_do_not_stand_beside_another_image_size(markdown):
    assert table_under(markdown, "## The paper's results table")["COCO"] == [
        "50", "–", "–", "–", "–", "900 (2 seeds)", "910 (2 seeds)", "–", "–"
    ]  # fmt: skip
    assert "COCO: images of 32×32, the paper's are 96×96" in markdown


def test_each_data_set_has_a_computed_verdict(datasets):
    [*_, verdicts] = paper_results(read_run(datasets), "test")
    clevr, coco = verdicts.items
    assert clevr[1] == "shown in part"
    assert "FID: 40 to 60 when unrolled, 30 to 50 when implicit; the seeds overlap." in clevr[2]
    assert "MSE: 30 to 31 when unrolled, 20 to 21 when implicit; every seed is higher when unrolled." in clevr[2]
    assert (coco[1], coco[2]) == (
        "shown in part", "MSE: 910 when unrolled, 900 when implicit; every seed is higher when unrolled."
    )  # fmt: skip


def test_the_evaluation_table_names_the_images_the_ceiling_and_what_is_best(markdown):
    section = markdown.split("## Evaluation\n")[1]
    assert "on the test split, N = 50 or 315 images; a cell's value is the mean over 2 draws" in section
    assert "| MSE ↓ | PSNR (dB) ↑ | FID ↓ |" in section
    rows = [line for line in section.splitlines() if line.startswith("| data = clevr_mirror |")]
    assert "| unrolled | 2 of 2 | 315 | 30.5 ± 0.71 (30 – 31) | 15 | 50 ± 14 (40 – 60) |" in rows[0]
    assert "| implicit | 2 of 2 | 315 | **20.5 ± 0.71** (20 – 21) | **25** | 40 ± 14 (30 – 50) |" in rows[1]
    assert "| dVAE alone (ceiling) | 4 | 315 | 5 | – | – |" in rows[2]
    assert "| data = clevr_mirror | unrolled | 2 | 0.12 | 0.12 | 0.12 |" in section, "the spread over draws, apart"
    assert "KID is left out: too many images (4 of 8)." in section


def test_evaluation_csv_holds_every_number(datasets):
    with open(datasets / "report" / "evaluation.csv") as file:
        rows = list(csv.DictReader(file))
    [row] = [r for r in rows if (r["gradient"], r["metric"], r["images"]) == ("implicit", "fid", "315")]
    assert {key: row[key] for key in ("split", "of", "count", "mean", "deviation_over_draws")} == {
        "split": "test", "of": "slots", "count": "2", "mean": "40.0", "deviation_over_draws": "0.125"
    }  # fmt: skip
    assert float(row["deviation"]) == pytest.approx(200**0.5)
    [ceiling] = [r for r in rows if r["of"] == "dvae"]
    assert (ceiling["mean"], ceiling["count"], ceiling["gradient"]) == ("5.0", "4", "")


def test_every_link_and_picture_of_the_report_exists(datasets, markdown):
    page = (datasets / "report" / "index.html").read_text()
    targets = re.findall(r'href="([^"]+)"', page) + re.findall(r"\]\(([^)]+)\)", markdown)
    assert any(target.endswith("evaluation/test.json") for target in targets)
    for target in targets:
        assert (datasets / "report" / unquote(target)).exists(), target


def test_the_picture_has_both_modes_on_the_same_images(datasets, markdown):
    assert "](qualitative_data_clevr_mirror.png)" in markdown
    assert "unrolled, data = clevr_mirror, seed 0; implicit, data = clevr_mirror, seed 0." in markdown
    with Image.open(datasets / "report" / "qualitative_data_clevr_mirror.png") as picture:
        pixels = np.array(picture)
    made = arrays(10), arrays(0)
    tile, rows = 96, 4  # 16 pixels, six times as large
    assert picture.height == 24 + 22 + rows * (tile + 4)
    assert picture.width == (4 + 100) + 2 * (4 + 4 * 100) + 2 * 14
    top = 24 + 22
    for left, expected in ((4, made[0]["truth"]), (104 + 14 + 4, made[0]["reconstruction"]),
                           (104 + 14 + 404 + 14 + 4, made[1]["reconstruction"])):  # fmt: skip
        assert np.array_equal(pixels[top : top + tile : 6, left : left + tile : 6], expected[0])
    slot = 104 + 14 + 4 + 100
    mask = made[0]["masks"][0, 0, :, :, None] / 255
    faded = made[0]["truth"][0] * mask + 255 * (1 - mask)
    assert np.abs(pixels[top : top + tile : 6, slot : slot + tile : 6] - faded).max() <= 1


class TestSmallGrids:
    """Faults and corner cases, without drawing a whole report."""

    @staticmethod
    def run(path, **scores):
        """A grid of `unrolled` and `implicit`: of each the MSE of every seed; None stands for a diverged cell."""
        rows = []
        for mode, values in scores.items():
            for seed, mse in enumerate(values):
                row = {"cell": f"{mode}{seed}", "gradient": mode, "seed": seed}
                rows.append(row | {"status": "complete" if mse else "diverged", "step": 40})
                if mse:
                    write_evaluation(path, row, mse=mse, psnr=100 - mse)
        return write_results(path, rows)

    @pytest.mark.parametrize(
        "unrolled, implicit, best",
        [
            ((5.0, 6.0), (3.0, 4.0), IMPLICIT),
            ((1.0, 2.0), (3.0, 4.0), UNROLLED),
            ((3.5, 6.0), (3.0, 4.0), None),
            ((5.0,), (3.0,), None),
            ((None, 6.0), (3.0, 4.0), IMPLICIT),
            ((None, None), (3.0, 4.0), IMPLICIT),
            ((5.0, 6.0), (3.0, None), None),
            ((), (3.0, 4.0), None),
        ],
    )
    def test_best_is_only_who_is_better_in_every_seed(self, tmp_path, unrolled, implicit, best):
        run = read_run(self.run(tmp_path, unrolled=unrolled, implicit=implicit))
        assert best_method(run, "test", "all cells", "mse") == best
        assert best_method(run, "test", "all cells", "psnr") == best, "where higher is better"

    def test_nothing_is_best_on_different_images(self, tmp_path):
        folder = self.run(tmp_path, unrolled=(5.0, 6.0), implicit=(3.0, 4.0))
        write_evaluation(folder, {"cell": "implicit1"}, mse=4.0, images=100)
        assert best_method(read_run(folder), "test", "all cells", "mse") is None
        write_report(folder)
        markdown = (folder / "report" / "report.md").read_text()
        assert "**Not the same images** in all cells: they do not compare, and nothing is bold." in markdown

    def test_what_was_not_evaluated_at_the_end_of_training_is_named(self, tmp_path):
        folder = self.run(tmp_path, unrolled=(5.0, 6.0), implicit=(3.0, None))
        write_evaluation(folder, {"cell": "unrolled1"}, mse=6.0, step=20)
        write_evaluation(folder, {"cell": "implicit1"}, mse=9.0)
        write_report(folder)
        markdown = (folder / "report" / "report.md").read_text()
        assert "**Not the end of training**: unrolled, seed 1 at step 20 of 40." in markdown
        assert "Evaluated, but not counted because not complete: implicit, seed 1." in markdown
        assert "| all cells | implicit | 1 of 2 (1 diverged) | 315 | 3 |" in markdown

    def test_both_splits_have_tables_and_test_comes_first(self, tmp_path):
        folder = self.run(tmp_path, unrolled=(5.0,), implicit=(3.0,))
        write_evaluation(folder, {"cell": "implicit0"}, split="val", mse=2.0)
        write_report(folder)
        markdown = (folder / "report" / "report.md").read_text()
        assert markdown.index("on the test split") < markdown.index("on the validation split")

    def test_scenes_of_our_own_are_not_the_papers_data(self, tmp_path):
        folder = self.run(tmp_path, implicit=(3.0,))
        write_evaluation(folder, {"cell": "implicit0"}, data="MirrorScenes", mse=3.0)
        assert paper_results(read_run(folder), "test") == []

    def test_data_of_the_paper_needs_no_axis(self, tmp_path):
        heading, about, table = paper_results(read_run(self.run(tmp_path, implicit=(3.0,))), "test")
        assert (type(heading), type(about), type(table)) == (Heading, Paragraph, Table)
        assert table.rows[0] == ["CLEVR-Mirror", "315", "–", "–", "22.19", "25.89", "3\n1 seed", "–", "10.66", "67.04"]

    def test_another_model_than_slate_is_not_held_against_the_paper(self, tmp_path):
        folder = self.run(tmp_path, implicit=(3.0,))
        config = {"model": {"class_path": "implicit_slate.training.SpatialBroadcastModule"}}
        (folder / "cells" / "implicit0" / "config.yaml").write_text(json.dumps(config))
        *_, table, reason = paper_results(read_run(folder), "test")
        assert table.rows[0][4] == "–" and "the paper's model is SLATE" in reason.text

    def test_a_verdict_counts_a_diverged_cell_as_worse(self, tmp_path):
        folder = self.run(tmp_path, unrolled=(5.0, None), implicit=(3.0, 4.0))
        config = {"data": {"class_path": "data_modules.CLEVRMirror"}}  # which tells where a diverged cell belongs
        (folder / "cells" / "implicit0" / "config.yaml").write_text(json.dumps(config))
        [*_, verdicts] = paper_results(read_run(folder), "test")
        assert isinstance(verdicts, Verdicts)
        assert "MSE: 5 or diverged (1 of 2) when unrolled, 3 to 4 when implicit; every seed" in verdicts.items[0][2]

    def test_modes_on_different_images_get_no_picture(self, tmp_path):
        folder = self.run(tmp_path, unrolled=(5.0,), implicit=(3.0,))
        for cell, images in (("unrolled0", 4), ("implicit0", 3)):
            write_evaluation(folder, {"cell": cell}, mse=3.0, arrays=arrays(images=images))
        [_, text] = qualitative(read_run(folder), "test", tmp_path / "report")
        assert "different images in all cells: no picture" in text.text

    def test_the_picture_is_of_a_seed_that_both_modes_have(self, tmp_path):
        folder = self.run(tmp_path, unrolled=(None, 5.0, 6.0), implicit=(3.0, None, 4.0))
        for cell in ("unrolled1", "unrolled2", "implicit0", "implicit2"):
            write_evaluation(folder, {"cell": cell}, mse=3.0, arrays=arrays())
        *_, images = qualitative(read_run(folder), "test", tmp_path / "report")
        assert images.images[0].caption.startswith("unrolled, seed 2; implicit, seed 2.")

    def test_modes_with_many_slots_stand_below_each_other(self, tmp_path):
        folder = self.run(tmp_path, unrolled=(5.0,), implicit=(3.0,))
        for cell in ("unrolled0", "implicit0"):
            write_evaluation(folder, {"cell": cell}, mse=3.0, arrays=arrays(slots=8))
        qualitative(read_run(folder), "test", tmp_path / "report")
        with Image.open(tmp_path / "report" / "qualitative.png") as picture:
            assert picture.size == ((4 + 100) + 14 + (4 + 9 * 100), 2 * (24 + 22 + 4 * 100))

    def test_a_few_settings_are_shown_and_the_others_linked(self, tmp_path):
        same = {"status": "complete", "gradient": "implicit", "seed": 0}
        rows = [same | {"cell": str(n), "iterations": n} for n in range(1, 7)]
        for row in rows:
            write_evaluation(tmp_path, row, mse=3.0, arrays=arrays())
        _, text, *images = qualitative(read_run(write_results(tmp_path, rows)), "test", tmp_path / "report")
        assert [block.images[0].file for block in images] == [f"qualitative_n_{n}.png" for n in range(1, 5)]
        assert "Further settings: [n = 5](qualitative_n_5.png) · [n = 6](qualitative_n_6.png)." in text.text

    @pytest.mark.parametrize(
        "content, complaint",
        [
            ("{", "cannot be read as JSON"),
            ("[]", "expected a JSON object"),
            ('{"images": 3}', "'metrics': expected a JSON object, got None"),
            ('{"metrics": {}}', "'images': expected the number of images, got None"),
            ('{"metrics": {"mse": 3.0}, "images": 3}', "'mse': expected a JSON object, got 3.0"),
            ('{"metrics": {"mse": {"mean": "3"}}, "images": 3}', "'metrics.mse.mean': expected a number, got '3'"),
            ('{"metrics": {}, "images": 3, "notes": "none"}', "'notes': expected a JSON list"),
        ],
    )
    def test_a_damaged_file_is_refused_in_one_line(self, tmp_path, content, complaint):
        folder = self.run(tmp_path, implicit=(3.0,))
        path = folder / "cells" / "implicit0" / "evaluation" / "test.json"
        path.write_text(content)
        with pytest.raises(UserError) as error:
            write_report(folder)
        assert str(path) in str(error.value) and complaint in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("fault", ["no archive", "key", "shape", "type"])
    def test_damaged_arrays_are_refused_in_one_line(self, tmp_path, fault):
        folder = self.run(tmp_path, implicit=(3.0,))
        made = arrays()
        if fault == "key":
            del made["masks"]
        elif fault == "shape":
            made["masks"] = made["masks"][:, :, :8]
        elif fault == "type":
            made["truth"] = made["truth"] / 255
        write_evaluation(folder, {"cell": "implicit0"}, mse=3.0, arrays=made)
        path = folder / "cells" / "implicit0" / "evaluation" / "test_panels.npz"
        if fault == "no archive":
            path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(UserError) as error:
            qualitative(read_run(folder), "test", tmp_path / "report")
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    def test_what_is_not_finite_is_not_a_value(self, tmp_path):
        folder = self.run(tmp_path, implicit=(3.0,))
        write_evaluation(folder, {"cell": "implicit0"}, mse=float("nan"), psnr=7.0)
        [cell] = read_run(folder).cells
        assert list(cell.evaluations["test"].metrics) == ["psnr"]
