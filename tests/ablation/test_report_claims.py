"""The verdicts on the paper's claims follow the numbers, and so do mean and spread in the table."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from implicit_slate.ablation.report.claims import chance_note, growth, judge, late_growth
from implicit_slate.ablation.report.methods import UNROLLED
from implicit_slate.ablation.report.run import SPECTRAL_NORM, Cell, Curve, Run
from implicit_slate.ablation.report.summary import summarise, to_csv

ALL_ON = {"clip": "on", "warmup": "on", "decay": "on"}
SETTINGS = [ALL_ON, ALL_ON | {"clip": "off"}, ALL_ON | {"warmup": "off"}, ALL_ON | {"decay": "off"}]
GROWS, LOSS, CLIP_NORM, CLIP_GRADIENT, WARMUP, DECAY, TRICKS, ITERATIONS = range(8)


def cell(gradient, seed, axes, status="complete", loss=80.0, norm=1.0, gradient_norm=50.0, end=1.0):
    row = {
        "val/cross_entropy": loss,
        "jacobian/spectral_norm_max": norm,
        "jacobian/spectral_norm_final": norm,
        "grad_norm_max": gradient_norm,
    }
    curve = Curve(np.arange(5), np.array([1.0, 1.0, 1.0, end, end]))
    axes = {"gradient": gradient, **axes, "seed": seed}
    return Cell(str(axes), status, axes, row, Path("x"), {SPECTRAL_NORM: curve})


def grid(make, settings=SETTINGS, seeds=2, gradients=("unrolled", "implicit")):
    """A run of which `make(gradient, axes, seed)` gives each cell's numbers."""
    cells = [cell(g, s, a, **make(g, a, s)) for a, g, s in itertools.product(settings, gradients, range(seeds))]
    return Run(Path("x"), {}, cells)


def verdicts(run):
    return [claim.verdict for claim in judge(run)]


def as_in_the_paper(gradient, axes, seed):
    noise = 0.01 * seed
    if gradient == "implicit":
        return {
            "loss": 80 + noise - (axes["decay"] == "off"),
            "norm": 1 + noise,
            "gradient_norm": 30 + noise,
            "end": 1.1,
        }
    harm = 3.0 if "off" in axes.values() else 1.0
    without_decay = 10 if axes["decay"] == "off" else 0
    return {
        "loss": 110 + 5 * noise - without_decay,
        "norm": 5 * harm + noise,
        "gradient_norm": 1e4 * harm**6 + noise,
        "end": 4.0,
    }


def test_everything_is_shown_where_everything_is_as_in_the_paper():
    assert verdicts(grid(as_in_the_paper)) == ["shown"] * 7 + ["not measured"] * 5


def test_everything_is_refuted_where_the_modes_change_places():
    swap = {"unrolled": "implicit", "implicit": "unrolled"}
    found = verdicts(grid(lambda gradient, axes, seed: as_in_the_paper(swap[gradient], axes, seed)))
    assert found[:4] == ["not shown"] * 4 and found[TRICKS] == "not shown"


def test_nothing_is_separable_where_the_ranges_overlap():
    def overlap(gradient, axes, seed):
        value = 1 + seed + 0.1 * (gradient == "unrolled")
        return {"loss": 80 * value, "norm": value, "gradient_norm": value, "end": 2 * value if seed else value}

    found = verdicts(grid(overlap))
    assert found[LOSS:TRICKS] == ["not separable here"] * 5


def test_the_sentence_holds_the_measured_figures():
    claim = judge(grid(as_in_the_paper))[LOSS]
    assert claim.sentence == (
        "Final validation cross-entropy: 100 to 110 when unrolled, 79 to 80.0 when implicit; "
        "every seed is higher when unrolled in each of the 4 settings."
    )


def test_one_seed_shows_nothing_and_says_so():
    run = grid(as_in_the_paper, seeds=1)
    claim = judge(run)[LOSS]
    assert claim.verdict == "not separable here" and "there is one seed only" in claim.sentence
    assert "one seed" in chance_note(run)


def test_a_claim_in_most_settings_is_shown_in_part_and_in_a_few_is_not():
    def apart_in(count):
        def make(gradient, axes, seed):
            apart = SETTINGS.index(axes) < count
            return {"loss": 80 + seed + (20 if apart and gradient == "unrolled" else 0.5)}

        return judge(grid(make))[LOSS]

    assert apart_in(4).verdict == "shown"
    assert apart_in(3).verdict == "shown in part"
    assert (
        "every seed is higher when unrolled in 3 of 4 settings (all tricks; no clipping; no warmup), "
        "the seeds overlap in 1 of 4 (no decay)" in apart_in(3).sentence
    )
    assert apart_in(2).verdict == "not separable here"


def test_gradients_that_explode_with_clipping_too_are_not_laid_to_its_removal():
    """As in an accelerated setting: unrolled spikes with and without the clip."""

    def make(gradient, axes, seed):
        return {"gradient_norm": (1e4 if gradient == "unrolled" else 50.0) * (1 + seed)}

    claim = judge(grid(make))[CLIP_GRADIENT]
    assert claim.verdict == "shown in part"
    assert (
        "unrolled: 10,000 to 20,000 without clipping, 10,000 to 20,000 with clipping; the seeds overlap"
        in claim.sentence
    )


def test_larger_is_not_yet_an_explosion():
    def make(gradient, axes, seed):
        return {"gradient_norm": 50.0 + seed if gradient == "unrolled" else 20.0}

    claim = judge(grid(make))[CLIP_GRADIENT]
    assert claim.verdict == "shown in part"
    assert (
        "50 to 51 when unrolled, 20 when implicit; every seed is higher when unrolled, but not by 10 times"
        in claim.sentence
    )


def test_diverged_cells_lie_above_every_number():
    def make(gradient, axes, seed):
        return {"status": "diverged" if gradient == "unrolled" and axes["warmup"] == "off" else "complete"}

    found = judge(grid(make))
    assert found[WARMUP].verdict == "shown"
    assert "diverged (2 of 2) when unrolled" in found[WARMUP].sentence
    assert found[CLIP_NORM].verdict == "not separable here"


def test_where_both_modes_diverge_nothing_is_separable():
    run = grid(lambda gradient, axes, seed: {"status": "diverged"})
    assert set(verdicts(run)) <= {"not separable here", "shown in part", "not measured"}
    assert verdicts(run)[LOSS] == "not separable here"


def test_cells_that_are_not_finished_do_not_count():
    def make(gradient, axes, seed):
        return as_in_the_paper(gradient, axes, seed) | {"status": "running" if gradient == "unrolled" else "complete"}

    assert verdicts(grid(make))[LOSS] == "not measured"


def test_one_mode_alone_measures_no_comparison_of_modes():
    found = verdicts(grid(as_in_the_paper, gradients=("implicit",)))
    assert found[GROWS] == found[LOSS] == found[CLIP_NORM] == "not measured"


def test_a_rise_in_the_first_steps_alone_is_not_growth():
    """Unrolled jumps up higher at once, and then nothing grows any more."""
    run = grid(lambda gradient, axes, seed: {})
    for cell in run.cells:
        level = 9.0 if cell.method == UNROLLED else 1.5
        cell.curves[SPECTRAL_NORM] = Curve(np.arange(9), np.array([1.0] + [level] * 8))
    claim = judge(run)[GROWS]
    assert claim.verdict == "shown in part"
    assert "second quarter of training: 1 when unrolled, 1 when implicit; the seeds overlap" in claim.sentence


def test_a_norm_that_grows_in_both_modes_is_not_stable():
    def make(gradient, axes, seed):
        return {"end": (9.0 if gradient == "unrolled" else 3.0) + seed}

    claim = judge(grid(make))[GROWS]
    assert claim.verdict == "shown in part"
    assert "at least 2 times the one before training in 8 of 8 unrolled cells and 8 of 8 implicit" in claim.sentence


@pytest.mark.parametrize(
    "slope, implicit_slope, verdict",
    [(5.0, 0.0, "shown"), (0.0, 0.0, "not separable here"), (0.0, 5.0, "not shown"), (-5.0, 0.0, "shown in part")],
)
def test_iterations(slope, implicit_slope, verdict):
    """The loss grows with n in one mode or the other; one that falls is sensitive too, but not as in the paper."""

    def make(gradient, axes, seed):
        n = axes["iterations"]
        return {"loss": 100 + seed + 0.001 * n * seed + n * (slope if gradient == "unrolled" else implicit_slope)}

    run = grid(make, settings=[{"iterations": n} for n in (1, 5, 11)])
    assert judge(run)[ITERATIONS].verdict == verdict


def test_a_full_product_compares_where_all_other_axes_agree():
    settings = [
        {"clip": c, "decay": d, "warmup": "on", "iterations": n}
        for c, d, n in itertools.product(("on", "off"), ("on", "off"), (3, 7))
    ]
    run = grid(as_in_the_paper, settings=settings, seeds=3)
    claims = judge(run)
    assert "in each of the 4 settings" in claims[CLIP_NORM].sentence
    assert claims[WARMUP].verdict == "not measured"
    assert run.settings[:2] == ["all tricks, n = 3", "all tricks, n = 7"]


def test_chance_is_counted_from_the_seeds():
    assert "1 of 6 settings" in chance_note(grid(as_in_the_paper, seeds=2))
    assert "1 of 20 settings" in chance_note(grid(as_in_the_paper, seeds=3))


def test_growth_is_the_last_quarter_over_the_first_measurement():
    curve = Curve(np.arange(0, 101, 10), np.array([2.0, 9, 9, 9, 9, 9, 9, 9, 4, 8, 6]))
    assert growth(Cell("a", "complete", {}, {}, Path("x"), {SPECTRAL_NORM: curve})) == 3.0
    assert growth(Cell("a", "diverged", {}, {}, Path("x"), {SPECTRAL_NORM: curve})) == math.inf
    assert growth(Cell("a", "complete", {}, {}, Path("x"))) is None


def test_late_growth_leaves_out_the_first_quarter():
    curve = Curve(np.arange(0, 81, 10), np.array([1.0, 1, 4, 5, 6, 7, 10, 10, 10]))  # second quarter: steps 20 to 40
    assert late_growth(Cell("a", "complete", {}, {}, Path("x"), {SPECTRAL_NORM: curve})) == 2.0
    assert late_growth(Cell("a", "diverged", {}, {}, Path("x"), {SPECTRAL_NORM: curve})) == math.inf


def test_the_table_averages_geometrically_over_orders_of_magnitude():
    run = grid(lambda gradient, axes, seed: {"gradient_norm": 10.0 ** (1 + 3 * seed), "loss": 80.0 + 2 * seed})
    line = summarise(run)[0]
    wide, narrow = line.spreads["grad_norm_max"], line.spreads["val/cross_entropy"]
    assert wide.geometric and wide.mean == pytest.approx(10**2.5)
    assert not narrow.geometric and narrow.mean == 81 and narrow.deviation == pytest.approx(math.sqrt(2))
    assert str(narrow) == "81 ± 1.4\n80 – 82" and "×÷" in str(wide)
    assert "all tricks,unrolled,val/cross_entropy,2,81.0," in to_csv(run, [line])


def test_the_table_takes_the_largest_norm_of_a_diverged_cell_but_not_its_loss():
    run = grid(
        lambda g, a, seed: {"status": "diverged" if seed else "complete", "norm": 1.0 + seed, "loss": 80.0 + seed}
    )
    line = summarise(run)[0]
    assert line.diverged == 1 and line.spreads["val/cross_entropy"].count == 1
    assert line.spreads["jacobian/spectral_norm_max"].largest == 2.0
