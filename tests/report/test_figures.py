"""The figures, drawn from the frames of a run as in a notebook."""

import itertools

import pytest

from implicit_slate.report.figures import (
    COLORS,
    MAX_METHODS,
    curve_figure,
    curve_tags,
    method_styles,
    methods_figure,
    numeric_axes,
    overview_figure,
    overview_tags,
    sweep_figure,
    wants_log,
)
from implicit_slate.report.run import METHODS, Method
from tests.report.made import TRICKS, frames

NORM = "jacobian/spectral_norm"

MODES = ["unrolled", "implicit", *(f"neumann({k})" for k in range(2, 9))]


def made(cells, curves=("val/cross_entropy", NORM, "grad_norm"), diverged=()):
    """A run whose cells have the same curves; those whose number is in `diverged` end at step 4, after step 2."""
    rows = [{"status": "diverged" if i in diverged else "complete", "step": 4.0, "seed": 0, "evaluations": 8,
             "val/cross_entropy": 100.0 - i, "jacobian/spectral_norm_max": 2.0, "grad_norm_max": 3.0} | cell
            for i, cell in enumerate(cells)]  # fmt: skip
    values = {i: [1.0, 2, 3] if i in diverged else [1.0, 2, 3, 4, 5] for i in range(len(rows))}
    return frames(rows, {str(i): dict.fromkeys(curves, values[i]) for i in values})


def panels(figure):
    return {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_there_is_one_panel_per_setting_and_a_mark_where_a_cell_diverged():
    cells = [{"gradient": g, **axes, "seed": s}
             for axes, g, s in itertools.product(TRICKS, ("unrolled", "implicit"), (0, 1))]  # fmt: skip
    figure = curve_figure(made(cells, diverged=(5,)), NORM)
    found = panels(figure)
    assert list(found) == ["all tricks", "no clipping", "no warmup", "no decay"]
    assert len({ax.get_ylim() for ax in found.values()}) == 1
    assert {ax.get_yscale() for ax in found.values()} == {"log"}
    marks = {title: [line for line in ax.lines if line.get_marker() == "X"] for title, ax in found.items()}
    assert {title: len(lines) for title, lines in marks.items() if lines} == {"no clipping": 1}
    assert marks["no clipping"][0].get_xdata() == [4]
    for ax in found.values():
        assert {line.get_color() for line in ax.lines} == set(COLORS.values())
        assert len(ax.collections) == 2, "a band for each mode"
    assert texts(figure) == ["unrolled", "implicit", "diverged"]


def test_the_papers_variants_share_one_panel():
    run = made([{**m._asdict(), "seed": s} for m, s in itertools.product(METHODS.values(), (0, 1))])
    figure = curve_figure(run, "val/cross_entropy")
    [panel] = figure.axes
    assert len({line.get_color() for line in panel.lines}) == 5 and len(panel.collections) == 5, "a band per variant"
    assert texts(figure) == ["unrolled", "IN", "IB", "BN", "BB"]


def test_more_modes_than_colours_have_a_panel_each_in_front_of_the_others():
    run = made([{"gradient": mode} for mode in MODES])
    assert len(run.methods) > MAX_METHODS
    found = panels(curve_figure(run, NORM))
    assert list(found) == MODES
    for title, ax in found.items():
        own = [line for line in ax.lines if line.get_color() == method_styles(run)[title]["color"]]
        assert len(own) == 1 and len(ax.lines) == len(MODES), "one cell in colour, all others behind it"
    assert overview_tags(run) == []


def test_the_overview_shows_the_norms_and_the_loss():
    run = made([{"gradient": mode} for mode in ("unrolled", "implicit")])
    assert list(panels(overview_figure(run))) == [
        "Spectral norm (log)",
        "Gradient norm (log)",
        "Validation cross-entropy",
    ]
    mse = frames([{"status": "complete", "seed": 0}], {"0": dict.fromkeys(("val/mse", "val/loss", NORM), [1.0])})
    assert curve_tags(mse) == ["val/mse", NORM], "of the losses the one that is trained for"


def test_results_by_method_are_sorted_and_mark_what_diverged():
    figure = methods_figure(made([{"gradient": mode} for mode in MODES]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == MODES[::-1]
    assert [ax.get_title() for ax in figure.axes] == [
        "Validation cross-entropy", "Largest spectral norm", "Largest gradient norm"
    ]  # fmt: skip
    cells = [{"gradient": mode, "val/cross_entropy": loss} for mode, loss in zip("abc", (2, 1, 0.1))]
    figure = methods_figure(made(cells, diverged=(2,)))  # although its last validation would be the best
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "a", "c"]
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert [list(line.get_ydata()) for line in marks] == [[2]]


def test_a_sweep_has_a_line_for_each_solver_and_mode():
    methods = [METHODS["unrolled"], METHODS["IN"], METHODS["BN"], Method("implicit", "anderson")]
    run = made(
        [{**m._asdict(), "seed": s, "iterations": n} for m, s, n in itertools.product(methods, (0, 1), (1, 7, 11))]
    )
    assert run.settings == ["n = 1", "n = 7", "n = 11"], "the solver is no setting"
    assert numeric_axes(run) == ["iterations"]
    figure = sweep_figure(run, "iterations")
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert len(lines) == 4 and len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4
    assert figure.axes[0].get_xlabel() == "n" and list(lines[0].get_xdata()) == [1, 7, 11]
    assert texts(figure) == ["unrolled", "implicit, picard", "implicit, broyden", "implicit, anderson"]
    run = made([{"gradient": "implicit", "iterations": n, "val/cross_entropy": n} for n in (1, 7, 11)], diverged=(1,))
    lines = sweep_figure(run, "iterations").axes[0].lines
    found = {mark: [list(line.get_xdata()) for line in lines if line.get_marker() == mark] for mark in "Xo"}
    assert found == {"X": [[7]], "o": [[1, 11]]}


def test_the_largest_norm_of_a_diverged_cell_is_a_mark_only():
    """It is that up to where the cell ended: often less than those of the cells that went on."""
    run = made([{"gradient": "implicit", "iterations": n, "grad_norm_max": n**2} for n in (1, 7, 11)], diverged=(2,))
    swept, by_method = sweep_figure(run, "iterations").axes[2], methods_figure(run).axes[2]
    assert swept.get_title() == "Largest gradient norm (log)" and swept.get_yscale() == "log"
    for ax, values in ((swept, "get_ydata"), (by_method, "get_xdata")):
        found = {line.get_marker(): list(getattr(line, values)()) for line in ax.lines}
        assert found["o"] == [1, 49] and "X" in found


def test_other_modes_have_colours_of_their_own():
    run = made([{"gradient": g} for g in ("neumann(3)", "implicit", "phantom(5, 0.5)", "unrolled", "exact(broyden)")])
    colors = {method: style["color"] for method, style in method_styles(run).items()}
    assert len(set(colors.values())) == 5 and list(colors)[:2] == ["unrolled", "implicit"]
    assert colors["implicit"] == COLORS["implicit"] and colors["unrolled"] == COLORS["unrolled"]


@pytest.mark.parametrize("values, tag, log", [
    ([290.0, 80.0], "val/cross_entropy", False),
    ([2900.0, 80.0], "val/cross_entropy", True),
    ([2.0, 1.0], "grad_norm", True),
    ([2900.0, 80.0], "slots/in_use", False),
])  # fmt: skip
def test_norms_have_a_log_axis_and_a_loss_only_where_it_spreads(values, tag, log):
    run = frames([{"status": "complete", "gradient": "implicit", "seed": 0}], {"0": {tag: values}})
    assert wants_log(run, tag) == log
