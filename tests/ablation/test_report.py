"""The report, written from made result files in the formats that a grid leaves."""

import csv
import html
import itertools
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from implicit_slate.ablation.report import curve_figures, main, write_report
from implicit_slate.ablation.report.curve_figures import wants_log
from implicit_slate.ablation.report.document import Paragraph, Table, link, to_html, to_markdown
from implicit_slate.ablation.report.drawing import COLORS, MAX_POINTS, colors, thin
from implicit_slate.ablation.report.formatting import short, span
from implicit_slate.ablation.report.methods import IMPLICIT, UNROLLED
from implicit_slate.ablation.report.reading import read_run
from implicit_slate.ablation.report.run import Cell, Curve, Run
from implicit_slate.errors import UserError

TRICKS = [
    {"clip": "on", "warmup": "on", "decay": "on"},
    {"clip": "off", "warmup": "on", "decay": "on"},
    {"clip": "on", "warmup": "off", "decay": "on"},
    {"clip": "on", "warmup": "on", "decay": "off"},
]


def write_cell(
    run: Path,
    gradient="implicit",
    seed=0,
    status="complete",
    steps=(0, 10, 20, 30, 40),
    loss=80.0,
    tag="val/cross_entropy",
    **axes,
):
    """One cell as a grid leaves it: events, a picture, `result.json` where it is finished. Returns its row."""
    name = ",".join(f"{axis}={value}" for axis, value in {"gradient": gradient, **axes, "seed": seed}.items())
    folder = run / "cells" / name
    row = {
        "cell": name,
        "status": status,
        "gradient": gradient,
        **axes,
        "seed": seed,
        "step": steps[-1] if steps else None,
    }
    if status != "waiting":
        writer = SummaryWriter(str(folder))
        for step in steps:
            writer.add_scalar("jacobian/spectral_norm", 1.0 + step / 20, step)
            writer.add_scalar("grad_norm", 50.0 + step, step)
            writer.add_scalar(tag, loss + 40 - step, step)
            writer.add_scalar("residual", 0.1, step)
            writer.add_scalar("train/loss", 1.0, step)
        writer.close()
        Image.new("RGB", (60, 40), "blue").save(folder / "panels.png")
        config = {"class_path": "M", "init_args": {"gradient": gradient, "optimization": {"learning_rate": 0.005}}}
        (folder / "config.yaml").write_text(json.dumps({"model": config}))  # JSON is YAML
    measures = {
        "val/cross_entropy": None, "val/mse": 12.0, tag: loss, "jacobian/spectral_norm_final": 3.0,
        "jacobian/spectral_norm_max": 3.0, "jacobian/spectral_radius_final": 1.1, "grad_norm_max": 90.0,
        "residual_final": 0.1, "evaluations": 8.0, "seconds": 4.0, "steps_per_second": 10.0,
    }  # fmt: skip
    finished = status in ("complete", "diverged", "failed")
    row |= measures if finished else dict.fromkeys(measures)
    row |= {"git": "0123abc" if finished else None, "versions": {"torch": "2.15.0"} if finished else None}
    if finished:
        (folder / "result.json").write_text(json.dumps(row))
    return row


def write_results(run: Path, rows: list[dict], description: str = "") -> Path:
    run.mkdir(exist_ok=True)
    (run / "results.json").write_text(json.dumps(rows))
    (run / "grid.json").write_text(
        json.dumps({"grid": "demo", "description": description, "study": "x", "configuration": {}})
    )
    return run


@pytest.fixture(scope="module")
def tricks(tmp_path_factory) -> Path:
    """A finished grid of the tricks, with its report; one unrolled cell has diverged."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    rows = []
    for axes, gradient, seed in itertools.product(TRICKS, ("unrolled", "implicit"), (0, 1)):
        diverged = gradient == "unrolled" and axes["clip"] == "off" and seed == 1
        loss = (80.0 if gradient == "implicit" else 100.0) + seed
        steps = (0, 10, 20) if diverged else (0, 10, 20, 30, 40)
        rows.append(write_cell(run, gradient, seed, "diverged" if diverged else "complete", steps, loss, **axes))
    write_results(run, rows, "An accelerated stress setting:\n  learning rate 50 times the public default (assumed).")
    write_report(run)
    return run


def test_every_figure_comes_as_png_svg_and_csv(tricks):
    for name in ("overview", "spectral_norm", "grad_norm", "cross_entropy", "residual"):
        with Image.open(tricks / "report" / f"{name}.png") as picture:
            assert picture.width > 600
        assert "<svg" in (tricks / "report" / f"{name}.svg").read_text()
        assert (tricks / "report" / f"{name}.csv").stat().st_size > 0


def test_the_csv_of_a_figure_holds_the_events(tricks):
    with open(tricks / "report" / "spectral_norm.csv") as file:
        rows = [
            row for row in csv.DictReader(file) if row["setting"] == "no clipping" and row["gradient"] == "unrolled"
        ]
    assert [int(row["step"]) for row in rows if row["seed"] == "0"] == [0, 10, 20, 30, 40]
    assert [float(row["value"]) for row in rows if row["seed"] == "1"] == [1.0, 1.5, 2.0]
    assert {row["status"] for row in rows if row["seed"] == "1"} == {"diverged"}


def test_the_drawing_has_a_panel_a_setting_and_marks_where_a_cell_diverged(tricks, monkeypatch):
    saved = []
    monkeypatch.setattr(curve_figures, "save", lambda figure, folder, name: saved.append(figure))
    monkeypatch.setattr(curve_figures, "_save_curves", lambda *arguments: None)
    run = read_run(tricks)
    curve_figures.draw_curves(run, tricks, "jacobian/spectral_norm")
    panels = {ax.get_title(): ax for ax in saved[0].axes if ax.get_visible()}
    assert list(panels) == ["all tricks", "no clipping", "no warmup", "no decay"]
    assert len({ax.get_ylim() for ax in panels.values()}) == 1
    assert {ax.get_yscale() for ax in panels.values()} == {"log"}
    marks = {title: [line for line in ax.lines if line.get_marker() == "X"] for title, ax in panels.items()}
    assert {title: len(lines) for title, lines in marks.items() if lines} == {"no clipping": 1}
    assert marks["no clipping"][0].get_xdata() == [20]
    for ax in panels.values():
        assert {line.get_color() for line in ax.lines} == {COLORS[UNROLLED], COLORS[IMPLICIT]}
        assert len(ax.collections) == 2, "a band a mode"


def test_the_page_is_self_contained_and_says_what_the_grid_is(tricks):
    page = (tricks / "report" / "index.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:image/png;base64,)[a-z]+:""", page), "an external address"
    assert "http" not in page
    assert "An accelerated stress setting: learning rate 50 times the public default (assumed)." in page
    assert "16 cells: 15 complete, 1 diverged." in page
    assert "unrolled, no clipping, seed 1, at step 20" in page
    assert "Code: <code>0123abc</code>" in page and "torch 2.15.0" in page
    assert page.count("data:image/png;base64,") == 5 + 2


def test_every_link_and_picture_of_both_documents_exists(tricks):
    page, markdown = (tricks / "report" / name for name in ("index.html", "report.md"))
    targets = re.findall(r'href="([^"]+)"', page.read_text()) + re.findall(r"\]\(([^)]+)\)", markdown.read_text())
    assert len(targets) > 60
    for target in targets:
        assert (tricks / "report" / unquote(target)).exists(), target


def test_markdown_and_html_have_the_same_sections_and_verdicts(tricks):
    page, markdown = ((tricks / "report" / name).read_text() for name in ("index.html", "report.md"))
    assert re.findall(r"<h2>(.*?)</h2>", html.unescape(page)) == re.findall(r"^## (.*)$", markdown, re.M)
    verdicts = re.findall(r'<span class="verdict [a-z-]+">(.*?)</span>', page)
    assert len(verdicts) == 12 and verdicts == re.findall(r"^  \*\*(.*?)\.\*\* ", markdown, re.M)


def test_the_table_counts_diverged_cells_apart(tricks):
    lines = (tricks / "report" / "report.md").read_text().splitlines()
    [implicit] = [line for line in lines if line.startswith("| no clipping | implicit |")]
    [unrolled] = [line for line in lines if line.startswith("| no clipping | unrolled |")]
    assert "| 2 of 2 | 80.5 ± 0.71 (80 – 81) |" in implicit
    assert "| 2 of 2 (1 diverged) | 100 |" in unrolled, "the loss of the diverged cell must not be averaged in"


def test_panels_of_both_modes_are_shown_and_the_rest_linked(tricks):
    markdown = (tricks / "report" / "report.md").read_text()
    assert "](panels_unrolled.png)" in markdown and "](panels_implicit.png)" in markdown
    assert "**implicit**, all tricks, seed 0." in markdown
    assert markdown.count("/panels.png)") == 14


def test_settings_that_all_cells_share_are_listed_and_others_are_not(tricks):
    markdown = (tricks / "report" / "report.md").read_text()
    assert "| `model.optimization.learning_rate` | `0.005` |" in markdown
    assert "model.gradient" not in markdown


def test_the_command_writes_the_same_files_again_and_prints_where_they_are(tricks, capsys):
    def content():
        return {path.name: path.read_bytes() for path in (tricks / "report").iterdir()}

    before = content()
    assert main([str(tricks)]) == 0
    assert capsys.readouterr().out.strip() == str(tricks / "report" / "index.html")
    assert content() == before


def test_a_grid_that_is_half_done(tmp_path):
    rows = [
        write_cell(tmp_path, "implicit", 0, "complete", clip="on"),
        write_cell(tmp_path, "unrolled", 0, "running", (0, 10), clip="on"),
        write_cell(tmp_path, "implicit", 0, "failed", (0, 10), clip="off"),
        write_cell(tmp_path, "unrolled", 0, "waiting", (), clip="off"),
    ]
    failed = tmp_path / "cells" / rows[2]["cell"] / "result.json"
    failed.write_text(json.dumps(rows[2] | {"error": "RuntimeError: out of memory"}))
    page = write_report(write_results(tmp_path, rows)).read_text()
    assert "This grid is not finished" in page
    assert "RuntimeError: out of memory" in page
    assert "log.txt" in page
    with open(tmp_path / "report" / "cross_entropy.csv") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"complete", "running", "failed"}


def test_a_grid_in_which_nothing_has_begun(tmp_path):
    page = write_report(write_results(tmp_path, [write_cell(tmp_path, status="waiting", steps=())])).read_text()
    assert "1 cells: 1 waiting." in page and "Nothing is logged yet." in page


def test_results_of_single_cells_are_enough(tmp_path):
    """A grid that was killed before `results.json` was written."""
    write_cell(tmp_path, seed=0)
    write_cell(tmp_path, seed=1)
    run = read_run(tmp_path)
    assert [cell.seed for cell in run.cells] == [0, 1] and run.methods == [IMPLICIT]
    assert "2 cells: 2 complete." in write_report(tmp_path).read_text()


def test_a_finished_cell_counts_even_if_the_table_is_older(tmp_path):
    row = write_cell(tmp_path)
    write_results(tmp_path, [row | {"status": "running", "val/cross_entropy": None}])
    [cell] = read_run(tmp_path).cells
    assert cell.status == "complete" and cell.number("val/cross_entropy") == 80.0


def test_a_grid_over_iterations_has_them_as_x_axis(tmp_path):
    rows = [
        write_cell(tmp_path, mode, seed, iterations=n, loss=80.0 + n)
        for n, mode, seed in itertools.product((1, 7, 11), ("unrolled", "implicit"), (0, 1))
    ]
    write_report(write_results(tmp_path, rows))
    assert read_run(tmp_path).settings == ["n = 1", "n = 7", "n = 11"]
    with open(tmp_path / "report" / "over_iterations.csv") as file:
        table = list(csv.DictReader(file))
    assert {(row["iterations"], row["val/cross_entropy"]) for row in table} == {
        ("1", "81.0"),
        ("7", "87.0"),
        ("11", "91.0"),
    }
    assert (tmp_path / "report" / "over_iterations.png").exists()


def methods(*names):
    cells = [Cell(name, "complete", {"gradient": name}, {}, Path("x")) for name in names]
    return Run(Path("x"), {}, cells)


def test_other_modes_have_colours_of_their_own():
    run = methods("neumann(3)", "implicit", "phantom(5, 0.5)", "unrolled", "exact(broyden)")
    chosen = colors(run)
    assert len({chosen[method] for method in run.methods}) == 5
    assert chosen[IMPLICIT] == COLORS[IMPLICIT] and run.methods[:2] == [UNROLLED, IMPLICIT]


def test_a_long_curve_keeps_its_spikes():
    values = [1.0] * 10_000
    values[4321] = 1e6
    drawn = thin(Curve(np.arange(10_000), np.array(values)), log=True)
    assert len(drawn.steps) == MAX_POINTS and drawn.values.max() == 1e6 and drawn.steps[-1] == 9999


def test_the_loss_is_on_a_log_axis_only_where_it_spreads():
    def cells(*values):
        curve = Curve(np.arange(len(values)), np.array(values))
        return [Cell("a", "complete", {}, {}, Path("x"), {"val/cross_entropy": curve, "grad_norm": curve})]

    assert not wants_log(cells(290.0, 80.0), "val/cross_entropy")
    assert wants_log(cells(2900.0, 80.0), "val/cross_entropy")
    assert wants_log(cells(2.0, 1.0), "grad_norm")


def test_values_that_are_not_finite_leave_the_curve(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    for step, value in enumerate((1.0, float("nan"), 3.0, float("inf"))):
        writer.add_scalar("grad_norm", value, step)
    writer.close()
    (tmp_path / "results.json").write_text(json.dumps([{"cell": "a", "status": "complete"}]))
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a").symlink_to(tmp_path)
    [cell] = read_run(tmp_path).cells
    assert cell.curves["grad_norm"].steps.tolist() == [0, 2] and cell.curves["grad_norm"].values.tolist() == [1.0, 3.0]


def test_events_that_are_being_written_are_read_as_far_as_they_go(tmp_path):
    write_cell(tmp_path)
    [events] = tmp_path.glob("cells/*/events*")
    events.write_bytes(events.read_bytes()[:-30])
    [cell] = read_run(tmp_path).cells
    assert cell.curves["val/cross_entropy"].steps.tolist() == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        (None, None, "no results.json"),
        ("results.json", "[{", "cannot be read as JSON"),
        ("results.json", "{}", "expected a JSON list"),
        ("results.json", '[{"status": "complete"}]', "each with a key 'cell'"),
        ("cells/a/result.json", "oops", "cannot be read as JSON"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, name, content, complaint):
    if name:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        write_report(tmp_path)
    assert complaint in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()


def test_the_command_without_a_folder_is_refused_in_one_line():
    with pytest.raises(UserError, match="RUN_DIR"):
        main([])


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "missing")


def test_the_report_of_a_demo_sized_grid_takes_seconds(tmp_path):
    rows = [
        write_cell(tmp_path, mode, seed, steps=range(0, 1000, 10), **axes)
        for axes, mode, seed in itertools.product(TRICKS, ("unrolled", "implicit"), (0, 1))
    ]
    write_results(tmp_path, rows)
    start = time.process_time()
    write_report(tmp_path)
    assert time.process_time() - start < 15


def test_importing_the_report_is_cheap():
    slow = "('torch', 'matplotlib', 'tensorboard')"
    code = f"import sys, implicit_slate.ablation.report; print([m for m in {slow} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "–"),
        (0, "0"),
        (7, "7"),
        (78.34, "78.3"),
        (6.2, "6.20"),
        (0.0123, "0.0123"),
        (999.6, "1,000"),
        (11_449.2, "11,400"),
        (1.84e6, "1.84·10⁶"),
        (4.12e-5, "4.12·10⁻⁵"),
        (-3.5, "-3.50"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_spans_name_diverged_cells():
    assert span([3.0, 1.0]) == "1 to 3"
    assert span([2.0, 2.0]) == "2"
    assert span([2.0, float("inf")]) == "2 or diverged (1 of 2)"
    assert span([float("inf")] * 3) == "diverged (3 of 3)"


def test_text_is_escaped_in_html_and_bars_in_markdown_tables(tmp_path):
    blocks = [Paragraph("a < b & **bold** `code` " + link("x", "a b.png")), Table(("h",), [("p|q\nsecond",)])]
    page, markdown = to_html("t", blocks, tmp_path), to_markdown("t", blocks)
    assert 'a &lt; b &amp; <strong>bold</strong> <code>code</code> <a href="a%20b.png">x</a>' in page
    assert "p|q<small>second</small>" in page and "| p\\|q (second) |" in markdown
