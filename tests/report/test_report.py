"""The report and the frames of a run, from result files made in the formats that a grid leaves."""

import csv
import html
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from implicit_slate import load_run
from implicit_slate.errors import UserError
from implicit_slate.report import main, write_report
from implicit_slate.report.numbers import short, span
from implicit_slate.report.page import plain
from implicit_slate.report.run import METHODS, Method
from implicit_slate.report.tables import result_spreads
from tests.report.made import TRICKS, Grid, all_links, frames, markdown

PRECISION = {"val/ap_inf": 0.5, "val/ap_1": 0.4, "val/ap_0.5": 0.3, "val/ap_0.25": 0.2, "val/ap_0.125": 0.1}


def rows_of(run: Path, name: str) -> list[dict[str, str]]:
    with open(run / "report" / f"{name}.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tricks(tmp_path_factory) -> Path:
    """A finished grid of the tricks, with its report; one unrolled cell has diverged."""
    grid = Grid(
        tmp_path_factory.mktemp("runs") / "demo",
        "an accelerated stress setting:\n  learning rate 50 times the <public> default (assumed)",
    )
    for axes, gradient, seed in itertools.product(TRICKS, ("unrolled", "implicit"), (0, 1)):
        loss = (80.0 if gradient == "implicit" else 100.0) + seed
        if gradient == "unrolled" and axes["clip"] == "off" and seed == 1:
            grid.cell(gradient, seed, "diverged", (0, 10, 20), loss, **axes)
        else:
            grid.cell(gradient, seed, loss=loss, **axes)
    write_report(grid.done())
    return grid.path


@pytest.fixture(scope="module")
def solvers(tmp_path_factory) -> Path:
    """A finished grid of the paper's variants, with its report."""
    grid = Grid(tmp_path_factory.mktemp("runs") / "solvers")
    losses = {"unrolled": 130.0, "IN": 13.0, "IB": 40.0, "BN": 14.0, "BB": 12.0}
    for (name, loss), seed in itertools.product(losses.items(), (0, 1)):
        grid.cell(METHODS[name].gradient, seed, loss=loss + seed, solver=METHODS[name].solver)
    write_report(grid.done())
    return grid.path


class TestFrames:
    def test_cells_and_curves_are_what_the_files_say(self, tricks):
        run = load_run(tricks)
        assert (run.name, run.axes) == ("demo", ["gradient", "clip", "warmup", "decay", "seed"])
        cell = "gradient=unrolled,clip=off,warmup=on,decay=on,seed=1"
        row = run.cells.loc[cell]
        assert (row["status"], row["clip"], row["seed"], row["step"], row["val/mse"]) == (
            "diverged",
            "off",
            1,
            20,
            12.0,
        )
        assert (row["method"], row["setting"], run.place(cell)) == (
            "unrolled", "no clipping", "unrolled, no clipping, seed 1"
        )  # fmt: skip
        assert list(run.cells["setting"].cat.categories) == ["all tricks", "no clipping", "no warmup", "no decay"]
        curve = run.curves[(run.curves["cell"] == cell) & (run.curves["tag"] == "jacobian/spectral_norm")]
        assert list(curve["step"]) == [0, 10, 20] and list(curve["value"]) == [1.0, 1.5, 2.0]
        assert run.evaluations.empty

    def test_an_axis_that_is_on_or_off_is_a_trick_whatever_its_name(self):
        run = frames([{"status": "complete", "gradient": "implicit", "decay": d, "iterations": n, "seed": 0}
                      for d, n in itertools.product(("on", "off"), (3, 7))])  # fmt: skip
        assert run.settings == ["all tricks, n = 3", "all tricks, n = 7", "no decay, n = 3", "no decay, n = 7"]
        assert list(run.settings_without("iterations")) == ["all tricks", "all tricks", "no decay", "no decay"]

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

    @pytest.mark.parametrize(
        "name, content, complaint",
        [
            ("curves.csv", "tag,step\na,1\n", "damaged: "),
            ("curves.csv", "tag,step,value\na,1,x\n", "damaged: "),
            ("curves.csv", "", "damaged: "),
            (
                "result.json",
                '{"status": "complete", "step": "x", "measures": {}}',
                "could not convert string to float: 'x'",
            ),
            ("config.yaml", "[", "malformed YAML"),
        ],
    )
    def test_a_damaged_file_is_named_in_one_line(self, tmp_path, name, content, complaint):
        grid = Grid(tmp_path)
        path = grid.cell() / name
        path.write_text(content)
        with pytest.raises(UserError) as error:
            write_report(grid.done())
        assert str(path) in str(error.value) and complaint in str(error.value) and "\n" not in str(error.value)

    def test_what_is_not_finite_is_no_point_of_a_curve_and_a_torn_result_is_absent(self, tmp_path):
        grid = Grid(tmp_path)
        folder = grid.cell()
        (folder / "curves.csv").write_text("tag,step,value\ngrad_norm,0,1.0\ngrad_norm,1,nan\ngrad_norm,2,inf\n")
        (folder / "result.json").write_text('{"status": "compl')
        run = load_run(grid.done())
        assert run.curves["value"].tolist() == [1.0] and run.cells["status"].tolist() == ["waiting"]

    def test_what_is_no_run_is_refused_in_one_line(self, tmp_path):
        with pytest.raises(UserError, match="no such folder"):
            load_run(tmp_path / "missing")
        with pytest.raises(UserError, match="not the folder of a grid"):
            write_report(tmp_path)
        with pytest.raises(UserError, match="RUN_DIR"):
            main([])
        assert not list(tmp_path.iterdir())


class TestPage:
    def test_every_figure_comes_as_png_svg_and_csv(self, tricks):
        for name in ("overview", "jacobian_spectral_norm", "grad_norm", "val_cross_entropy", "residual"):
            with Image.open(tricks / "report" / f"{name}.png") as picture:
                assert picture.width > 600
            assert "<svg" in (tricks / "report" / f"{name}.svg").read_text()
            assert rows_of(tricks, name)

    def test_the_csv_of_a_figure_holds_the_curves(self, tricks):
        rows = rows_of(tricks, "jacobian_spectral_norm")
        rows = [row for row in rows if (row["setting"], row["gradient"]) == ("no clipping", "unrolled")]
        assert [int(row["step"]) for row in rows if row["seed"] == "0"] == [0, 10, 20, 30, 40]
        assert [float(row["value"]) for row in rows if row["seed"] == "1"] == [1.0, 1.5, 2.0]
        assert {row["status"] for row in rows if row["seed"] == "1"} == {"diverged"}

    def test_the_page_is_self_contained_and_says_what_the_grid_is(self, tricks):
        page = (tricks / "report" / "index.html").read_text()
        assert not re.findall(r"""(?:src|href)=["'](?!data:image/png;base64,)[a-z]+:""", page), "an external address"
        assert "http" not in page
        assert "An accelerated stress setting: learning rate 50 times the &lt;public&gt; default (assumed)." in page
        assert "16 cells: 15 complete, 1 diverged." in page
        assert "unrolled, no clipping, seed 1, at step 20" in page
        assert "Code: <code>0123abc</code>" in page and "torch 2.15.0" in page
        assert page.count("data:image/png;base64,") == 5 + 2

    def test_every_link_and_picture_of_both_documents_exists(self, tricks):
        assert len(all_links(tricks)) > 60
        for target in all_links(tricks):
            assert (tricks / "report" / target).exists(), target

    def test_markdown_and_html_have_the_same_sections_and_verdicts(self, tricks):
        page = (tricks / "report" / "index.html").read_text()
        assert re.findall(r"<h2>(.*?)</h2>", html.unescape(page)) == re.findall(r"^## (.*)$", markdown(tricks), re.M)
        verdicts = re.findall(r'<strong class="verdict [a-z-]+">(.*?)</strong>', page)
        assert len(verdicts) == 12 and verdicts == re.findall(r"^   \*\*(.*?)\.\*\* ", markdown(tricks), re.M)
        assert "With 2 seeds in each group, pure chance puts every seed higher in 1 of 6 settings" in page

    def test_the_table_counts_diverged_cells_apart(self, tricks):
        lines = markdown(tricks).splitlines()
        [implicit] = [line for line in lines if line.startswith("| no clipping | implicit |")]
        [unrolled] = [line for line in lines if line.startswith("| no clipping | unrolled |")]
        assert "| 2 of 2 | 80.5 ± 0.71<small>80 – 81</small> |" in implicit
        assert "| 2 of 2<small>1 diverged</small> | 100 |" in unrolled, (
            "the diverged cell's loss must not be averaged in"
        )

    def test_panels_of_both_modes_are_shown_and_the_rest_linked(self, tricks):
        assert "](panels_unrolled.png)" in markdown(tricks) and "](panels_implicit.png)" in markdown(tricks)
        assert "**implicit**, all tricks, seed 0." in markdown(tricks)
        assert markdown(tricks).count("/panels.png)") == 14

    def test_settings_that_all_cells_share_are_listed_and_others_are_not(self, tricks):
        assert "| `model.rate` | `0.005` |" in markdown(tricks)
        assert "model.gradient" not in markdown(tricks)

    def test_the_command_writes_the_same_files_again_and_prints_where_they_are(self, tricks, capsys):
        def content():
            return {path.name: path.read_bytes() for path in (tricks / "report").iterdir()}

        before = content()
        assert main([str(tricks)]) == 0
        assert capsys.readouterr().out.strip() == str(tricks / "report" / "index.html")
        assert content() == before

    def test_a_grid_that_is_half_done(self, tmp_path):
        grid = Grid(tmp_path)
        grid.cell("implicit", clip="on")
        grid.cell("unrolled", status="running", steps=(0, 10), clip="on")
        grid.cell("implicit", status="failed", steps=(0, 10), clip="off", error="RuntimeError: <out> of memory")
        grid.cell("unrolled", status="waiting", clip="off")
        page = write_report(grid.done()).read_text()
        assert "This grid is not finished" in page and "log.txt" in page
        assert "RuntimeError: &lt;out&gt; of memory" in page
        assert {row["gradient"] for row in rows_of(tmp_path, "val_cross_entropy")} == {"implicit", "unrolled"}

    def test_a_grid_in_which_nothing_has_begun(self, tmp_path):
        grid = Grid(tmp_path)
        grid.cell(status="waiting")
        page = write_report(grid.done()).read_text()
        assert "1 cells: 1 waiting." in page and "Nothing is logged yet." in page

    def test_a_grid_of_solvers_explains_their_names_and_judges_their_claims(self, solvers):
        assert "**BB** say how the fixed point is solved forward" in markdown(solvers)
        shown, hidden = markdown(solvers).split("<details><summary>7 claims that this grid does not measure")
        assert "BB, BN and IN end alike" in shown and "Without warmup" not in shown and "Without warmup" in hidden
        assert (solvers / "report" / "by_method.png").exists()
        for name in ("unrolled", "in", "ib", "bn", "bb"):
            assert f"](panels_{name}.png)" in markdown(solvers)

    def test_the_table_of_solvers_is_sorted_by_the_result_and_names_gradient_and_solver(self, solvers):
        rows = [line.split(" | ") for line in markdown(solvers).splitlines() if line.startswith("| all cells |")]
        assert [row[1:4] for row in rows] == [
            ["BB", "exact(broyden, 7)", "broyden"],
            ["IN", "implicit", "picard"],
            ["BN", "implicit", "broyden"],
            ["IB", "exact(broyden, 7)", "picard"],
            ["unrolled", "unrolled", "picard"],
        ]
        assert "The lowest mean validation cross-entropy comes first." in markdown(solvers)
        [row] = [row for row in rows_of(solvers, "table") if (row["gradient"], row["solver"]) == ("implicit", "broyden")
                 and row["measurement"] == "val/cross_entropy"]  # fmt: skip
        assert (row["count"], row["mean"], row["geometric"]) == ("2", "14.5", "False")

    def test_a_grid_over_iterations_has_them_as_x_axis(self, tmp_path):
        grid = Grid(tmp_path)
        for n, mode in itertools.product((1, 7, 11), ("unrolled", "implicit")):
            grid.cell(mode, iterations=n, loss=80.0 + n)
        write_report(grid.done())
        assert "](over_iterations.png)" in markdown(tmp_path)
        rows = rows_of(tmp_path, "over_iterations")
        assert {(row["iterations"], row["val/cross_entropy"]) for row in rows} == {
            ("1", "81.0"), ("7", "87.0"), ("11", "91.0")
        }  # fmt: skip


class TestOtherModels:
    def test_property_prediction_is_compared_by_its_own_loss_and_precisions(self, tmp_path):
        grid = Grid(tmp_path)
        for mode, seed in itertools.product(("unrolled", "implicit"), (0, 1)):
            grid.cell(mode, seed, tag="val/loss", loss=0.5 + seed, measures={**PRECISION, "val/mse": None})
        write_report(grid.done())
        assert "Final validation loss: 0.500 to 1.50 when unrolled" in markdown(tmp_path)
        assert "cross-entropy" not in markdown(tmp_path).split("## Results")[1]
        assert (tmp_path / "report" / "val_loss.png").exists()
        assert "| AP at any distance | AP within distance 1 | AP within 0.5 |" in markdown(tmp_path)

    def test_a_spatial_broadcast_decoder_is_compared_by_its_mse_seed_by_seed(self, tmp_path):
        grid = Grid(tmp_path)
        for mode, seed in itertools.product(("unrolled", "implicit"), (0, 1)):
            grid.cell(mode, seed, tag="val/mse", loss=20.0 + 5 * (mode == "unrolled") + seed)
        write_report(grid.done())
        assert "Final validation MSE: 25 to 26 when unrolled, 20 to 21 when implicit" in markdown(tmp_path)
        assert not (tmp_path / "report" / "val_cross_entropy.png").exists()
        assert re.findall(r"\]\((panels_.*?)\)", markdown(tmp_path)) == [
            f"panels_{mode}_seed_{seed}.png" for seed in (0, 1) for mode in ("unrolled", "implicit")
        ]

    def test_any_measure_of_the_table_has_a_curve_and_a_column_where_it_was_logged(self, tmp_path):
        grid = Grid(tmp_path)
        folder = grid.cell(measures={"slots/in_use_final": 3.5, "gradient/cosine": 0.75, "val/loss": 92.0})
        with open(folder / "curves.csv", "a") as file:
            file.write("slots/in_use,0,2.0\nslots/in_use,10,3.5\n")
        write_report(grid.done())
        assert [float(row["value"]) for row in rows_of(tmp_path, "slots_in_use")] == [2.0, 3.5]
        header = next(line for line in markdown(tmp_path).splitlines() if line.startswith("| setting |"))
        assert "| cosine to the exact gradient |" in header and "| last slots in use |" in header
        assert "validation loss" not in header, "the sum of losses beside its parts"


def test_the_table_averages_geometrically_over_orders_of_magnitude():
    rows = [{"status": "complete", "gradient": "implicit", "seed": seed, "grad_norm_max": 10.0 ** (1 + 3 * seed),
             "val/cross_entropy": 80.0 + 2 * seed} for seed in (0, 1)]  # fmt: skip
    spread = result_spreads(frames(rows)).set_index("measurement")
    wide, narrow = spread.loc["grad_norm_max"], spread.loc["val/cross_entropy"]
    assert wide["geometric"] and wide["mean"] == pytest.approx(10**2.5)
    assert not narrow["geometric"] and narrow["mean"] == 81 and narrow["deviation"] == pytest.approx(2**0.5)


def test_the_largest_norm_of_a_diverged_cell_counts_but_not_its_loss():
    rows = [{"status": status, "gradient": "implicit", "seed": 0, "jacobian/spectral_norm_max": norm, "val/mse": 1.0}
            for status, norm in (("complete", 1.0), ("diverged", 2.0))]  # fmt: skip
    spread = result_spreads(frames(rows)).set_index("measurement")
    assert spread.loc["val/mse", "count"] == 1 and spread.loc["jacobian/spectral_norm_max", "largest"] == 2.0


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
