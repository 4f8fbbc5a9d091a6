"""The report and the frames of a run, from synthetic result files in the formats of a grid."""

import base64
import csv
import html
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from implicit_slate import load_run
from implicit_slate.errors import UserError
from implicit_slate.pictures import panels_npz
from implicit_slate.report import main, write_report
from implicit_slate.report.interactive import MAX_POINTS, page_data
from implicit_slate.report.numbers import short, span
from implicit_slate.report.page import plain
from implicit_slate.report.run import METHODS, Method
from implicit_slate.report.tables import paired_differences, result_spreads
from tests.report.made import all_links, frames, markdown, write_evaluation, write_pictures

PRECISION = {"val/ap_inf": 0.5, "val/ap_1": 0.4, "val/ap_0.5": 0.3, "val/ap_0.25": 0.2, "val/ap_0.125": 0.1}


def rows_of(run: Path, name: str) -> list[dict[str, str]]:
    with open(run / "report" / f"{name}.csv") as file:
        return list(csv.DictReader(file))


class TestFrames:
    def test_cells_and_curves_are_what_the_files_say(self, tricks):
        run = load_run(tricks)
        assert (run.name, run.axes) == ("demo", ["gradient", "clip", "warmup", "decay", "seed"])
        cell = "gradient=unrolled,clip=off,warmup=on,decay=on,seed=1"
        keys = ["status", "clip", "seed", "step", "val/mse", "method", "setting"]
        assert run.cells.loc[cell, keys].tolist() == ["diverged", "off", 1, 20, 12.0, "unrolled", "no clipping"]
        assert run.place(cell) == "unrolled, no clipping, seed 1"
        assert run.settings == ["all tricks", "no clipping", "no warmup", "no decay"]
        assert run.curve(cell, "jacobian/spectral_norm").to_dict() == {0: 1.0, 10: 1.5, 20: 2.0}
        assert run.evaluations.empty

    def test_an_axis_that_is_on_or_off_is_a_trick_whatever_its_name(self):
        run = frames([{"status": "complete", "gradient": "implicit", "decay": d, "iterations": n, "seed": 0}
                      for d, n in itertools.product(("on", "off"), (3, 7))])  # fmt: skip
        assert run.settings == ["all tricks, n = 3", "all tricks, n = 7", "no decay, n = 3", "no decay, n = 7"]
        assert list(run.settings_without("iterations")) == ["all tricks", "all tricks", "no decay", "no decay"]

    def test_what_some_cells_have_in_addition_is_no_trick(self):
        run = frames([{"status": "complete", "gradient": "implicit", "decay": d, "seed": 0} for d in ("off", "on")])
        assert run.tricks == [] and run.settings == ["decay = off", "decay = on"]

    def test_a_notebook_shows_medians_of_what_is_finished_and_has_not_diverged(self):
        losses = {"complete": 40.0, "running": 200.0, "diverged": 300.0}
        run = frames([{"status": status, "gradient": "implicit", "seed": i, "val/cross_entropy": loss}
                      for i, (status, loss) in enumerate(losses.items())])  # fmt: skip
        assert "40" in run._repr_html_() and "200" not in run._repr_html_() and "300" not in run._repr_html_()

    @pytest.mark.parametrize(
        "methods, labels",
        [
            (["IN", "unrolled"], ["unrolled", "implicit"]),
            (["unrolled", "IN", "IB", "BN", "BB"], ["unrolled", "IN", "IB", "BN", "BB"]),
            (["unrolled", "IN", "anderson"], ["unrolled", "implicit, picard", "implicit, anderson"]),
            (["unrolled", "IN", "IB"], ["unrolled", "implicit", "exact(broyden, 7)"]),
        ],
    )
    def test_methods_have_the_papers_names_or_say_what_they_are(self, methods, labels):
        known = METHODS | {"anderson": Method("implicit", "anderson")}
        run = frames([{"status": "complete", **known[name]._asdict(), "seed": 0} for name in methods])
        assert list(run.methods) == labels

    def test_reading_a_run_needs_neither_torch_nor_the_report(self, tricks):
        code = f"""if True:
            import sys, implicit_slate, implicit_slate.report
            print(sorted({{"torch", "matplotlib", "pandas"}} & sys.modules.keys()))
            implicit_slate.load_run({str(tricks)!r})
            print(sorted({{"torch", "lightning", "tensorboard"}} & sys.modules.keys()))"""
        assert subprocess.check_output([sys.executable, "-c", code], text=True).split("\n")[:2] == ["[]", "[]"]


class TestBadFiles:
    @pytest.mark.parametrize(
        "name, content, complaint",
        [
            ("curves.csv", "tag,step\na,1\n", "damaged: "),
            ("curves.csv", "tag,step,value\na,1,x\n", "damaged: "),
            ("curves.csv", "", "damaged: "),
            ("result.json", '{"status": "complete", "step": "x", "measures": {}}', "to float: 'x'"),
            ("config.yaml", "[", "malformed YAML"),
            ("evaluation/test.json", '{"metrics": {}}', "KeyError: 'images'"),
            ("evaluation/test.json", '{"metrics": {"mse": 3.0}, "images": 3}', "'float' object has no attribute 'get'"),
            ("evaluation/test.json", '{"metrics": {"mse": {"mean": "x"}}, "images": 3}', "to float: 'x'"),
        ],
    )
    def test_a_damaged_file_is_named_in_one_line(self, grid, name, content, complaint):
        path = grid.cell() / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        with pytest.raises(UserError) as error:
            grid.report()
        assert str(path) in str(error.value) and complaint in str(error.value) and "\n" not in str(error.value)

    def test_what_is_not_finite_is_no_value_and_what_is_torn_is_not_there(self, grid):
        torn, folder = grid.cell(seed=0), grid.cell(seed=1)
        (folder / "curves.csv").write_text("tag,step,value\ngrad_norm,0,1.0\ngrad_norm,1,nan\ngrad_norm,2,inf\n")
        write_evaluation(folder, mse=float("nan"), psnr=7.0)
        write_evaluation(torn)
        for name in ("result.json", "evaluation/test.json"):
            (torn / name).write_text('{"status": "compl')
        run = load_run(grid.done())
        assert run.cells["status"].tolist() == ["waiting", "complete"]
        assert run.curves[run.curves["cell"].str.endswith("1")]["value"].tolist() == [1.0]
        assert run.evaluations[["mse", "psnr", "of"]].fillna("none").values.tolist() == [["none", 7.0, "slots"]]

    def test_what_is_no_run_is_refused_in_one_line(self, tmp_path):
        with pytest.raises(UserError, match="no such folder"):
            load_run(tmp_path / "missing")
        with pytest.raises(UserError, match="not the folder of a grid"):
            write_report(tmp_path)
        with pytest.raises(UserError, match="RUN_DIR"):
            main([])
        assert not list(tmp_path.iterdir())


class TestPage:
    def test_every_link_and_picture_exists_and_every_figure_comes_as_png_svg_and_csv(self, tricks):
        links = set(all_links(tricks))
        for target in links:
            assert (tricks / "report" / target).exists(), target
        for name in ("overview", "jacobian_spectral_norm", "grad_norm", "val_cross_entropy", "residual"):
            assert {f"{name}.png", f"{name}.svg", f"{name}.csv"} <= links
            with Image.open(tricks / "report" / f"{name}.png") as picture:
                assert picture.width > 600
            assert "<svg" in (tricks / "report" / f"{name}.svg").read_text()

    def test_the_csv_of_a_figure_holds_the_curves(self, tricks):
        rows = rows_of(tricks, "jacobian_spectral_norm")
        rows = [row for row in rows if (row["setting"], row["gradient"]) == ("no clipping", "unrolled")]
        assert [int(row["step"]) for row in rows if row["seed"] == "0"] == [0, 10, 20, 30, 40]
        assert [float(row["value"]) for row in rows if row["seed"] == "1"] == [1.0, 1.5, 2.0]
        assert {row["status"] for row in rows if row["seed"] == "1"} == {"diverged"}

    @pytest.mark.parametrize(
        "words",
        [
            "An accelerated stress setting: learning rate 50 times the \\<public\\> default (assumed).",
            "16 cells: 15 complete, 1 diverged.",
            "unrolled, no clipping, seed 1, at step 20",
            "With 2 seeds in each group, pure chance puts every seed higher in 1 of 6 settings",
            "\n| no clipping | implicit | 2 of 2 | 80.5 ± 0.71<small>80 – 81</small> |",
            "\n| no clipping | unrolled | 2 of 2<small>1 diverged</small> | 100 |",  # without the diverged cell's loss
            "| implicit | off | on | on | 0 | complete | 40 | 80 |",
            "| `model.rate` | `0.005` |",
            "Code: `0123abc`",
            "torch 2.15.0",
        ],
    )
    def test_the_report_says_what_the_grid_is_and_what_came_of_it(self, tricks, words):
        assert words in markdown(tricks)

    def test_settings_in_which_cells_differ_are_not_listed_and_panels_of_all_cells_are_linked(self, tricks):
        assert "model.gradient" not in markdown(tricks) and markdown(tricks).count("/panels.png)") == 16

    def test_the_page_is_self_contained_and_says_the_same(self, tricks):
        page, text = (tricks / "report" / "index.html").read_text(), markdown(tricks)
        addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
        assert addresses and not [a for a in addresses if re.match("[a-z]+:", a) and not a.startswith("data:")]
        assert len(page) < 2_500_000 and page.count("<img") == 1, "figures are drawn from the data, in the browser"
        assert "the &lt;public&gt; default" in page
        headings = re.findall(r"^## (.*)$", text, re.M)
        assert re.findall(r"<h2>(.*?)</h2>", html.unescape(page)) == [*headings, "Masks forming"]
        verdicts = re.findall(r'<strong class="verdict [a-z-]+">(.*?)</strong>', page)
        assert len(verdicts) == 12 and verdicts == re.findall(r"^   \*\*(.*?)\.\*\* ", text, re.M)

    def test_the_command_writes_the_same_files_again_and_prints_where_they_are(self, tricks, capsys):
        def content():
            return {path.name: path.read_bytes() for path in (tricks / "report").iterdir()}

        before = content()
        assert main([str(tricks)]) == 0
        assert capsys.readouterr().out.strip() == str(tricks / "report" / "index.html")
        assert content() == before


class TestOtherGrids:
    def test_one_that_is_half_done(self, grid):
        grid.cell("implicit", clip="on")
        grid.cell("unrolled", status="running", steps=(0, 10), clip="on")
        failed = grid.cell(
            "implicit", status="failed", steps=(0, 10), clip="off", error="RuntimeError: <out> of memory"
        )
        (failed / "log.txt").touch()
        grid.cell("unrolled", status="waiting", clip="off")
        text = grid.report()
        assert "This grid is not finished" in text and "log.txt" in text
        assert "RuntimeError: \\<out\\> of memory" in text
        assert {row["gradient"] for row in rows_of(grid.path, "val_cross_entropy")} == {"implicit", "unrolled"}

    def test_one_in_which_nothing_has_begun(self, grid):
        grid.cell(status="waiting")
        text = grid.report()
        assert "1 cells: 1 waiting." in text and "Nothing is logged yet." in text

    def test_one_of_solvers_explains_their_names_and_judges_their_claims(self, solvers):
        assert "**BB** say how the fixed point is solved forward" in markdown(solvers)
        shown, hidden = markdown(solvers).split("<details><summary>7 claims that this grid does not measure")
        assert "BB, BN and IN end alike" in shown and "Without warmup" not in shown and "Without warmup" in hidden
        assert (solvers / "report" / "by_method.png").exists()

    def test_the_table_of_solvers_is_sorted_by_the_result_and_names_gradient_and_solver(self, solvers):
        table = markdown(solvers).partition("| setting | method | gradient |")[2].partition("\n\n")[0]
        rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| all cells |")]
        assert [row[1:4] for row in rows] == [
            ["BB", "exact(broyden, 7)", "broyden"],
            ["IN", "implicit", "picard"],
            ["BN", "implicit", "broyden"],
            ["IB", "exact(broyden, 7)", "picard"],
            ["unrolled", "unrolled", "picard"],
        ]
        assert "The lowest mean validation cross-entropy comes first." in markdown(solvers)
        rows = [list(row.values()) for row in rows_of(solvers, "table")]
        assert ["all cells", "implicit", "broyden", "val/cross_entropy", "2", "14.5"] in [row[:6] for row in rows]

    def test_one_over_iterations_has_them_as_x_axis(self, grid):
        for n, mode in itertools.product((1, 7, 11), ("unrolled", "implicit")):
            grid.cell(mode, iterations=n, loss=80.0 + n)
        assert "](over_iterations.png)" in grid.report()
        rows = {(row["iterations"], row["val/cross_entropy"]) for row in rows_of(grid.path, "over_iterations")}
        assert rows == {("1", "81.0"), ("7", "87.0"), ("11", "91.0")}

    def test_property_prediction_is_compared_by_its_own_loss_and_precisions(self, grid):
        for mode, seed in itertools.product(("unrolled", "implicit"), (0, 1)):
            grid.cell(mode, seed, tag="val/loss", loss=0.5 + seed, measures={**PRECISION, "val/mse": None})
        text = grid.report()
        assert "Final validation loss: 0.500 to 1.50 when unrolled" in text
        assert "cross-entropy" not in text.split("## Results")[1] and "](val_loss.png)" in text
        assert "| AP at any distance | AP within distance 1 | AP within 0.5 |" in text

    def test_the_same_images_through_both_modes_are_the_first_picture(self, grid):
        for clip, mode in itertools.product(("on", "off"), ("implicit", "unrolled")):
            write_pictures(grid.cell(mode, clip=clip, measures={"slots/fg_ari_final": 0.5}))
        text = grid.report()
        assert re.search(r"!\[.*?\]\((.*?)\)", text)[1] == "comparison.png" and text.count("comparison.png") == 1
        picture = (grid.path / "report" / "comparison.png").read_bytes()
        page = (grid.path / "report" / "index.html").read_text()
        assert page.index(base64.b64encode(picture).decode()) < page.index("<h2>")

        others = panels_npz(np.zeros((2, 3, 8, 8)), np.zeros((2, 3, 8, 8)), np.full((2, 4, 8, 8), 0.25), None)
        (grid.path / "cells" / "gradient=unrolled,clip=off,seed=0" / "panels.npz").write_bytes(others)
        grid.report()
        assert (grid.path / "report" / "comparison.png").read_bytes() == picture, "it is of the first setting"

        file = grid.path / "cells" / "gradient=unrolled,clip=on,seed=0" / "panels.npz"
        file.write_bytes(others)
        assert "comparison.png" not in grid.report(), "other images"
        file.write_bytes(b"PK\x03\x04torn")
        with pytest.raises(UserError, match=f"{re.escape(str(file))}: damaged"):
            grid.report()

    def test_a_spatial_broadcast_decoder_is_compared_by_its_mse_seed_by_seed(self, grid):
        for mode, seed in itertools.product(("unrolled", "implicit"), (0, 1)):
            grid.cell(mode, seed, tag="val/mse", loss=20.0 + 5 * (mode == "unrolled") + seed)
        text = grid.report()
        assert "Final validation MSE: 25 to 26 when unrolled, 20 to 21 when implicit" in text
        assert "val_cross_entropy" not in text

    def test_any_measure_of_the_table_has_a_curve_and_a_column_where_it_was_logged(self, grid):
        folder = grid.cell(measures={"slots/in_use_final": 3.5, "gradient/cosine": 0.75, "val/loss": 92.0})
        with open(folder / "curves.csv", "a") as file:
            file.write("slots/in_use,0,2.0\nslots/in_use,10,3.5\n")
        header = next(line for line in grid.report().splitlines() if line.startswith("| setting |"))
        assert [float(row["value"]) for row in rows_of(grid.path, "slots_in_use")] == [2.0, 3.5]
        assert "| cosine to the exact gradient |" in header and "| last slots in use |" in header
        assert "validation loss" not in header, "the sum of losses beside its parts"


def test_cells_of_the_page_have_steps_in_common_and_keep_their_peaks():
    peaks = {"0": 333, "1": 1111, "2": 2222}
    curves = {
        cell: {"grad_norm": [7.0 if step == peak else 1.0 for step in range(3000)]} for cell, peak in peaks.items()
    }
    run = frames([{"status": "complete", "gradient": "implicit", "seed": seed} for seed in range(3)], curves)
    found = json.loads(page_data(run, {"overview": {"keys": ["grad_norm"], "by": "step", "panels": "keys"}}))
    (steps, _), *others = shown = found["curves"]["grad_norm"]
    assert (
        steps[0] == 0 and steps[-1] == 2999 and len(steps) <= MAX_POINTS and all(other[0] == steps for other in others)
    )
    for peak, (_, values) in zip(peaks.values(), shown):
        after = next(i for i, step in enumerate(steps) if step >= peak)
        assert [i for i, value in enumerate(values) if value == 7] == [after]


def test_a_loss_that_spreads_over_training_but_not_at_its_end_has_a_log_axis_over_training_only():
    cells = [{"status": "complete", "gradient": "implicit", "iterations": n, "seed": 0, "val/cross_entropy": 40.0 + n}
             for n in (1, 7, 11)]  # fmt: skip
    run = frames(cells, {str(i): {"val/cross_entropy": [300.0, 40.0]} for i in range(3)})
    charts = {by: {"keys": ["val/cross_entropy"], "by": by, "panels": "keys"} for by in ("step", "iterations")}
    found = json.loads(page_data(run, charts))["charts"]
    assert {by: chart["log"] for by, chart in found.items()} == {"step": ["val/cross_entropy"], "iterations": []}


def test_captions_promise_medians_and_crosses_only_where_they_are(grid):
    for mode in ("unrolled", "implicit"):
        grid.cell(mode)
    assert "Each line is a cell (one training run). [PNG]" in grid.report()
    grid.cell("implicit", 1, status="diverged")
    assert "each thick line their median" in grid.report() and "After a cross" in markdown(grid.path)


def test_modes_are_compared_seed_by_seed():
    """The modes overlap as groups, but every implicit cell is 1 to 3 below the unrolled one of its seed."""
    losses = {"unrolled": (70.0, 80.0, 90.0, 99.0), "implicit": (69.0, 78.0, 87.0, 50.0)}
    norms = {"unrolled": (1e3, 1e4, 1e5, 1e6), "implicit": (10.0, 100.0, 1000.0, 1.0)}
    run = frames(
        [
            {
                "status": "failed" if (mode, seed) == ("implicit", 3) else "complete",
                "gradient": mode, "seed": seed,
                "val/cross_entropy": losses[mode][seed], "grad_norm_max": norms[mode][seed],
            }
            for mode in losses for seed in (3, 1, 0, 2)
        ]
    )  # fmt: skip
    found = paired_differences(run, None).set_index("measurement")
    loss, norm = found.loc["val/cross_entropy"], found.loc["grad_norm_max"]
    assert (loss.seeds, loss.difference, loss.is_ratio) == (3, -2, False) and -3 <= loss.low < -2 < loss.high <= -1
    assert norm.is_ratio and norm.difference == norm.low == norm.high == pytest.approx(0.01)


def test_without_two_seeds_of_both_modes_nothing_is_compared_seed_by_seed(grid):
    for mode, seed in (("unrolled", 0), ("implicit", 0), ("implicit", 1)):
        grid.cell(mode, seed)
    assert "seed by seed" not in grid.report()
    grid.cell("unrolled", 1, loss=85.0)
    assert "| validation cross-entropy | 2 | -2.50 [-5, 0] |" in grid.report()


def test_means_are_geometric_over_orders_of_magnitude_and_diverged_cells_count_in_the_largest_norms_only():
    rows = [
        {
            "status": status,
            "gradient": "implicit",
            "seed": i,
            "grad_norm_max": 10.0 ** (1 + 3 * i),
            "val/mse": 80.0 + 2 * i,
        }
        for i, status in enumerate(("complete", "complete", "diverged"))
    ]
    spread = result_spreads(frames(rows)).set_index("measurement")
    wide, narrow = spread.loc["grad_norm_max"], spread.loc["val/mse"]
    assert wide["geometric"] and wide["mean"] == pytest.approx(10**4) and wide["largest"] == 10**7
    assert not narrow["geometric"] and narrow["mean"] == 81 and narrow["deviation"] == pytest.approx(2**0.5)


def test_scores_near_zero_are_averaged_and_compared_as_they_are():
    scores = {"unrolled": (0.004, 0.35, 0.516), "implicit": (0.604, 0.55, 0.616)}
    column = "slots/fg_ari_final"
    rows = [
        {"status": "complete", "gradient": mode, "seed": seed, column: score}
        for mode in scores for seed, score in enumerate(scores[mode])
    ]  # fmt: skip
    spread = result_spreads(frames(rows)).set_index(["measurement", "method"])
    assert spread.loc[(column, "unrolled"), "mean"] == pytest.approx(0.29)
    difference = paired_differences(frames(rows), None).set_index("measurement").loc[column]
    assert not difference.is_ratio and difference.difference == pytest.approx(0.3)


@pytest.mark.parametrize(
    "value, text",
    [
        (float("nan"), "–"), (0, "0"), (7, "7"), (78.34, "78.3"), (6.2, "6.20"), (0.0123, "0.0123"), (999.6, "1,000"),
        (11_449.2, "11,400"), (1.84e6, "1.84·10⁶"), (4.12e-5, "4.12·10⁻⁵"), (-3.5, "-3.50"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_spans_name_diverged_cells():
    assert [span(values) for values in ([3.0, 1.0], [2.0, 2.0], [2.0, float("inf")], [float("inf")] * 3)] == [
        "1 to 3", "2", "2 or diverged (1 of 2)", "diverged (3 of 3)"
    ]  # fmt: skip


def test_text_of_users_is_no_markup():
    assert plain("a*b* <c>\n[d](e) | `f`") == r"a\*b\* \<c\> \[d\](e) \| \`f\`"


def test_an_axis_may_have_the_value_null_beside_numbers(grid):
    for clip_norm, seed in itertools.product((None, 0.05, 0.1), range(2)):
        for gradient in ("unrolled", "implicit"):
            grid.cell(gradient, seed, clip_norm=clip_norm)
    assert "12 complete" in grid.report()
    assert set(load_run(grid.path).cells["clip_norm"]) == {"null", 0.05, 0.1}


def test_a_search_has_a_report_though_its_trials_have_no_seeds(grid):
    for trial in range(3):
        grid.cell("implicit", trial, trial=trial)
    for cell in grid.cells:
        del cell["axes"]["seed"]
    assert "trial" in grid.report()
