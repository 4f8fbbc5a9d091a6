"""What the report shows of grids that compare more than the two gradient modes."""

import csv
import itertools
import json
import re

import pytest

from implicit_slate.ablation.report import curve_figures, result_figures, write_report
from implicit_slate.ablation.report.claims import judge
from implicit_slate.ablation.report.drawing import MAX_METHODS, colors
from implicit_slate.ablation.report.methods import BB, BN, IB, IN, UNROLLED, Method, labels
from implicit_slate.ablation.report.reading import read_run
from implicit_slate.ablation.report.run import MSE
from implicit_slate.ablation.report.summary import summarise, to_csv
from tests.ablation.test_report import write_cell, write_results

VARIANTS = {UNROLLED: 130.0, IN: 13.0, IB: 40.0, BN: 14.0, BB: 12.0}
MODES = ["unrolled", "implicit", *(f"neumann({k})" for k in range(2, 9))]


@pytest.fixture(scope="module")
def solvers(tmp_path_factory):
    """A finished grid of the paper's variants, with its report."""
    run = tmp_path_factory.mktemp("runs") / "solvers"
    rows = [
        write_cell(run, method.gradient, seed, loss=loss + seed, solver=method.solver)
        for (method, loss), seed in itertools.product(VARIANTS.items(), (0, 1))
    ]
    write_results(run, rows)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """A finished grid of more modes than there are colours, each a little worse than the one before."""
    run = tmp_path_factory.mktemp("runs") / "gradients"
    rows = [write_cell(run, mode, loss=100.0 - i) for i, mode in enumerate(MODES)]
    return write_results(run, rows)


@pytest.fixture
def saved(monkeypatch):
    """The figures that would be written, by name."""
    figures = {}
    for module in (curve_figures, result_figures):
        monkeypatch.setattr(module, "save", lambda figure, folder, name: figures.update({name: figure}))
        monkeypatch.setattr(module, "save_cells", lambda *arguments: None)
    return figures


def test_the_variants_have_the_papers_names_and_others_say_what_they_are():
    assert labels(list(VARIANTS)) == {UNROLLED: "unrolled", IN: "IN", IB: "IB", BN: "BN", BB: "BB"}
    anderson = Method("implicit", "anderson")
    assert labels([UNROLLED, IN, anderson]) == {
        UNROLLED: "unrolled", IN: "implicit, picard", anderson: "implicit, anderson"
    }  # fmt: skip
    assert labels([UNROLLED, IN, IB])[IB] == "exact(broyden, 7)"


def test_the_variants_share_one_panel_five_colours_and_a_legend_with_evaluations(solvers, saved):
    run = read_run(solvers)
    curve_figures.draw_curves(run, solvers, "val/cross_entropy")
    figure = saved["cross_entropy"]
    [panel] = figure.axes
    assert len({line.get_color() for line in panel.lines}) == 5 and len(panel.collections) == 5, "a band a variant"
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{name} (8)" for name in ("unrolled", "IN", "IB", "BN", "BB")
    ]
    assert legend.get_title().get_text() == "in brackets: evaluations of f a step"


def test_the_report_on_solvers_explains_the_names_and_judges_their_claims(solvers):
    markdown = (solvers / "report" / "report.md").read_text()
    assert "**BB** say how the fixed point is solved forward" in markdown
    shown, hidden = markdown.split("<details><summary>7 claims that this grid does not measure")
    assert "BB, BN and IN end alike" in shown and "Without warmup" not in shown and "Without warmup" in hidden
    assert (solvers / "report" / "by_method.png").exists()
    for name in ("unrolled", "in", "ib", "bn", "bb"):
        assert f"](panels_{name}.png)" in markdown


def test_the_table_is_sorted_by_the_result_and_names_gradient_and_solver(solvers):
    markdown = (solvers / "report" / "report.md").read_text()
    rows = [line.split(" | ") for line in markdown.splitlines() if line.startswith("| all cells |")]
    assert [row[1:4] for row in rows] == [
        ["BB", "exact(broyden, 7)", "broyden"],
        ["IN", "implicit", "picard"],
        ["BN", "implicit", "broyden"],
        ["IB", "exact(broyden, 7)", "picard"],
        ["unrolled", "unrolled", "picard"],
    ]
    assert "The lowest mean validation cross-entropy comes first." in markdown
    header = next(line for line in markdown.splitlines() if line.startswith("| setting |"))
    assert "evaluations a step" in header and "steps a second" in header


def test_the_numbers_of_a_figure_name_gradient_and_solver(solvers):
    with open(solvers / "report" / "cross_entropy.csv") as file:
        found = {(row["gradient"], row["solver"]) for row in csv.DictReader(file)}
    assert found == {tuple(method) for method in VARIANTS}
    table = to_csv(read_run(solvers), summarise(read_run(solvers)))
    assert "all cells,implicit,broyden,val/cross_entropy,2,14.5," in table


def test_two_modes_stay_in_their_order_whatever_the_result(tmp_path):
    rows = [write_cell(tmp_path, "unrolled", loss=9.0), write_cell(tmp_path, "implicit", loss=1.0)]
    run = read_run(write_results(tmp_path, rows))
    assert [line.method for line in summarise(run)] == [UNROLLED, IN]


def test_more_modes_than_colours_have_a_panel_each_in_front_of_the_others(gradients, saved):
    run = read_run(gradients)
    assert len(run.methods) > MAX_METHODS
    curve_figures.draw_curves(run, gradients, "jacobian/spectral_norm")
    panels = {ax.get_title(): ax for ax in saved["spectral_norm"].axes if ax.get_visible()}
    assert list(panels) == MODES
    for title, ax in panels.items():
        own = [line for line in ax.lines if line.get_color() == colors(run)[Method(title)]]
        assert len(own) == 1 and len(ax.lines) == len(MODES), "one cell in colour, all others behind"
    assert curve_figures.draw_overview(run, gradients) is None


def test_results_by_method_are_sorted_and_mark_what_diverged(gradients, saved, tmp_path):
    result_figures.draw_methods(read_run(gradients), gradients)
    axes = saved["by_method"].axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == MODES[::-1]
    assert [ax.get_title().split(" (")[0] for ax in axes] == [
        "Validation cross-entropy", "Largest spectral norm", "Largest gradient norm"
    ]  # fmt: skip
    rows = [write_cell(tmp_path, mode, status="diverged" if mode == "c" else "complete") for mode in "abc"]
    result_figures.draw_methods(read_run(write_results(tmp_path, rows)), tmp_path)
    marks = [line for line in saved["by_method"].axes[0].lines if line.get_marker() == "X"]
    assert [list(line.get_ydata()) for line in marks] == [[2]]


def test_two_modes_need_no_figure_by_method(tmp_path, saved):
    run = read_run(write_results(tmp_path, [write_cell(tmp_path, mode) for mode in ("unrolled", "implicit")]))
    assert result_figures.draw_methods(run, tmp_path) is None


def test_a_sweep_has_a_line_a_solver_and_mode(tmp_path, saved):
    methods = [UNROLLED, IN, BN, Method("implicit", "anderson")]
    rows = [
        write_cell(tmp_path, method.gradient, seed, solver=method.solver, iterations=n, loss=80.0 + n)
        for method, seed, n in itertools.product(methods, (0, 1), (1, 7, 11))
    ]
    run = read_run(write_results(tmp_path, rows))
    assert run.settings == ["n = 1", "n = 7", "n = 11"], "the solver is no setting"
    assert result_figures.numeric_axes(run) == ["iterations"]
    result_figures.draw_sweep(run, tmp_path, "iterations")
    figure = saved["over_iterations"]
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert len(lines) == 4 and len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "unrolled", "implicit, picard", "implicit, broyden", "implicit, anderson"
    ]  # fmt: skip


def test_agreement_with_the_exact_gradient_is_reported_where_it_was_measured(tmp_path):
    agreement = {"gradient/cosine": 0.75, "gradient/adjoint_residual": 1e-7, "gradient/adjoint_products": 75.0}
    row = write_cell(tmp_path) | agreement
    [line] = summarise(read_run(write_results(tmp_path, [row])))
    assert {key: line.spreads[key].mean for key in agreement} == agreement
    [without] = summarise(read_run(write_results(tmp_path / "other", [write_cell(tmp_path / "other")])))
    assert not agreement.keys() & without.spreads.keys()


class TestArchitecture:
    """Slot attention with a spatial broadcast decoder: no tokens, no cross-entropy."""

    @pytest.fixture(scope="class")
    def architecture(self, tmp_path_factory):
        run = tmp_path_factory.mktemp("runs") / "architecture"
        rows = []
        for mode, seed in itertools.product(("unrolled", "implicit"), (0, 1)):
            row = write_cell(run, mode, seed, tag=MSE, loss=20.0 + 5 * (mode == "unrolled") + seed)
            config = {"model": {"class_path": "implicit_slate.training.SpatialBroadcastModule", "init_args": {"a": 1}}}
            (run / "cells" / row["cell"] / "config.yaml").write_text(json.dumps(config))
            rows.append(row)
        write_results(run, rows)
        write_report(run)
        return run

    def test_its_loss_is_the_mse(self, architecture):
        markdown = (architecture / "report" / "report.md").read_text()
        assert "Final validation MSE: 25 to 26 when unrolled, 20 to 21 when implicit" in markdown
        assert "cross-entropy" not in markdown and "dVAE" not in markdown
        assert (architecture / "report" / "mse.png").exists()
        assert not (architecture / "report" / "cross_entropy.png").exists()

    def test_masks_of_both_modes_stand_side_by_side_seed_by_seed(self, architecture):
        markdown = (architecture / "report" / "report.md").read_text()
        assert re.findall(r"\]\((panels_.*?)\)", markdown) == [
            f"panels_{mode}_seed_{seed}.png" for seed in (0, 1) for mode in ("unrolled", "implicit")
        ]

    def test_whether_masks_are_intuitive_is_left_to_the_eye(self, architecture):
        run = read_run(architecture)
        claim = judge(run)[-1]
        assert (claim.verdict, "masks" in claim.claim) == ("for the eye", True)
        assert "No number here measures it" in claim.sentence

    def test_it_is_not_judged_without_both_pictures(self, architecture, tmp_path):
        run = read_run(architecture)
        run.cells = [cell for cell in run.cells if cell.method == IN]
        assert judge(run)[-1].verdict == "not measured"
