"""The verdicts on the paper's claims follow the numbers."""

import itertools
import math

import pandas as pd
import pytest

from implicit_slate import load_run
from implicit_slate.report.judging import fall, growth, judge, late_growth, setback
from implicit_slate.report.run import METHODS, PAPER
from tests.report.made import TRICKS, Grid, frames

GROWS, LOSS, CLIP_NORM, CLIP_GRADIENT, WARMUP, DECAY, SENSITIVITY, ITERATIONS, PLATEAU, ALIKE, STABLE, MASKS = range(12)

MODES = ("unrolled", "IN")


def judged(make, settings=TRICKS, methods=MODES, seeds=2):
    """The judgements of a run of which `make(name of the method, axes, seed)` gives the numbers of each cell.

    Those are `status`, `loss`, `norm` (of the Jacobian, the last and the largest), `gradient_norm`, and the curves
    `norms` and `losses`; of norms, `end` alone says where a curve from 1 ends.
    """
    cells, curves = [], {}
    for axes, name, seed in itertools.product(settings, methods, range(seeds)):
        made = {"status": "complete", "loss": 80.0, "norm": 1.0, "gradient_norm": 50.0, "end": 1.0, "losses": []}
        made |= make(name, axes, seed)
        norms = dict.fromkeys(("jacobian/spectral_norm_max", "jacobian/spectral_norm_final"), made["norm"])
        loss = made["losses"][-1] if made["losses"] else made["loss"]
        row = {"val/cross_entropy": loss, "grad_norm_max": made["gradient_norm"], **norms}
        norm_curve = made.get("norms", [1.0, 1.0, 1.0, made["end"], made["end"]])
        curves[str(len(cells))] = {"jacobian/spectral_norm": norm_curve, "val/cross_entropy": made["losses"]}
        cells.append({"status": made["status"], **METHODS[name]._asdict(), **axes, "seed": seed, **row})
    run = frames(cells, curves)
    return [judge(run, claim) for claim in PAPER["claims"]]


def variants(make, methods=tuple(METHODS), settings=({},), seeds=2):
    """The judgements of a run of the paper's variants."""
    return judged(make, settings, methods, seeds)


def verdicts(judgements):
    return [claim.verdict for claim in judgements]


def as_in_the_paper(mode, axes, seed):
    noise = 0.01 * seed
    if mode == "IN":
        loss = 80 + noise - (axes["decay"] == "off")
        return {"loss": loss, "norm": 1 + noise, "gradient_norm": 30 + noise, "end": 1.1}
    harm = 3.0 if "off" in axes.values() else 1.0
    loss = 110 + 5 * noise - (10 if axes["decay"] == "off" else 0)
    return {"loss": loss, "norm": 5 * harm + noise, "gradient_norm": 1e4 * harm**6 + noise, "end": 4.0}


def variants_as_in_the_paper(name, axes, seed):
    noise = 0.1 * seed
    if name == "unrolled":
        return {"losses": [300, 140, 131, 130, 130 + noise], "gradient_norm": 10.0}
    if name == "IB":
        return {"losses": [300, 50, 90 + noise, 20, 30], "gradient_norm": 500 + noise}
    return {"losses": [300, 50, 30, 20, 13 + noise], "gradient_norm": 10.0}


def test_all_claims_are_shown_where_all_is_as_in_the_paper():
    assert verdicts(judged(as_in_the_paper)) == ["shown"] * 7 + ["not measured"] * 5
    assert verdicts(variants(variants_as_in_the_paper))[PLATEAU:MASKS] == ["shown"] * 3


def test_claims_are_refuted_where_it_is_the_other_way_round():
    swap = {"unrolled": "IN", "IN": "unrolled"}
    found = verdicts(judged(lambda mode, axes, seed: as_in_the_paper(swap[mode], axes, seed)))
    assert found[:4] == ["not shown"] * 4 and found[SENSITIVITY] == "not shown"

    def make(name, axes, seed):
        if name == "unrolled":
            return {"losses": [300, 200, 100, 50, 10 + seed]}
        level = {"IN": 40, "BN": 90, "BB": 200, "IB": 20}[name] + seed
        jump = 1 if name == "IB" else 2
        return {"losses": [300, 3 * level, 2 * level, 2 * level * jump, level], "gradient_norm": 100 * jump + seed}

    assert verdicts(variants(make))[PLATEAU:MASKS] == ["not shown"] * 3


def test_nothing_is_separable_where_the_ranges_overlap():
    def overlap(mode, axes, seed):
        value = 1 + seed + 0.1 * (mode == "unrolled")
        return {"loss": 80 * value, "norm": value, "gradient_norm": value, "end": 2 * value if seed else value}

    assert verdicts(judged(overlap))[LOSS:SENSITIVITY] == ["not separable here"] * 5


def test_the_sentences_hold_the_measured_figures():
    assert judged(as_in_the_paper)[LOSS].sentence == (
        "Final validation cross-entropy: 100 to 110 when unrolled, 79 to 80.0 when implicit; "
        "every seed is higher when unrolled in each of the 4 settings."
    )
    plateau, alike, stable = variants(variants_as_in_the_paper)[PLATEAU:MASKS]
    assert "falls by 0.687 to 0.763% when unrolled, by no more than 5% in 2 of 2 cells" in plateau.sentence
    assert (
        "Final validation cross-entropy: 130 when unrolled, 13 to 13.1 with BB, BN or IN; "
        "every seed is higher when unrolled in each of the 3 comparisons." in plateau.sentence
    )
    assert "no medians differ by more than 1.2 times" in alike.sentence
    assert "lowest before it: 1.80 with IB, 1 with BB, BN or IN; every seed is higher with IB" in stable.sentence


def test_one_seed_shows_nothing_and_says_so():
    claims = [judged(as_in_the_paper, seeds=1)[LOSS], *variants(variants_as_in_the_paper, seeds=1)[ALIKE:MASKS]]
    for claim in claims:
        assert claim.verdict == "not separable here" and "there is one seed only" in claim.sentence


def test_a_claim_that_holds_in_most_settings_is_shown_in_part_and_in_a_few_is_not():
    def apart_in(count):
        def make(mode, axes, seed):
            apart = TRICKS.index(axes) < count
            return {"loss": 80 + seed + (20 if apart and mode == "unrolled" else 0.5)}

        return judged(make)[LOSS]

    assert [apart_in(n).verdict for n in (4, 3, 2)] == ["shown", "shown in part", "not separable here"]
    assert (
        "every seed is higher when unrolled in 3 of 4 settings (all tricks; no clipping; no warmup), "
        "the seeds overlap in 1 of 4 (no decay)" in apart_in(3).sentence
    )


JUMPS_AT_ONCE = [1.0] + [9.0] * 8
PLATEAUS = {True: [300, 140, 131, 130, 130], False: [300, 120, 110, 100, 100]}
OVERLAPPING = {"IN": (10, 40), "BN": (20, 60), "BB": (12, 41), "IB": (1, 1), "unrolled": (1, 1)}


@pytest.mark.parametrize(
    "claim, make, verdict, words",
    [
        pytest.param(
            CLIP_GRADIENT, lambda mode, axes, seed: {"gradient_norm": (1e4 if mode == "unrolled" else 50) * (1 + seed)},
            "shown in part", "10,000 to 20,000 without clipping, 10,000 to 20,000 with clipping; the seeds overlap",
            id="gradients explode with clipping, too",
        ),
        pytest.param(
            CLIP_GRADIENT, lambda mode, axes, seed: {"gradient_norm": 50.0 + seed if mode == "unrolled" else 20.0},
            "shown in part", "20 when implicit; every seed is higher when unrolled, but not by 10 times",
            id="gradients are larger, but not by far",
        ),
        pytest.param(
            GROWS, lambda mode, axes, seed: {"norms": JUMPS_AT_ONCE if mode == "unrolled" else [1.0] + [1.5] * 8},
            "shown in part", "second quarter of training: 1 when unrolled, 1 when implicit; the seeds overlap",
            id="a rise in the first steps alone is not growth",
        ),
        pytest.param(
            GROWS, lambda mode, axes, seed: {"end": (9.0 if mode == "unrolled" else 3.0) + seed},
            "shown in part", "at least 2 times the one before training in 8 of 8 unrolled cells and 8 of 8 implicit",
            id="a norm that grows in both modes is not stable",
        ),
        pytest.param(
            WARMUP,
            lambda mode, axes, seed: {
                "status": "diverged" if mode == "unrolled" and axes["warmup"] == "off" else "complete"
            },
            "shown", "diverged (2 of 2) when unrolled", id="a diverged cell lies above every number",
        ),
        pytest.param(
            LOSS, lambda mode, axes, seed: {"status": "diverged"},
            "not separable here", "diverged (8 of 8) when unrolled", id="all cells diverge",
        ),
    ],
)  # fmt: skip
def test_what_modes_show(claim, make, verdict, words):
    found = judged(make)[claim]
    assert found.verdict == verdict and words in found.sentence


@pytest.mark.parametrize(
    "claim, make, options, verdict, words",
    [
        pytest.param(
            PLATEAU, lambda name, axes, seed: {"losses": PLATEAUS[name == "unrolled"]}, {},
            "shown in part", "every seed is higher when unrolled, but not by 5 times", id="a plateau not far above",
        ),
        pytest.param(
            ALIKE, lambda name, axes, seed: {"losses": [99, 99, 99, OVERLAPPING[name][seed]]}, {},
            "not separable here", "by more than 1.2 times between BB and BN; BN and IN",
            id="medians differ while the seeds overlap",
        ),
        pytest.param(
            ALIKE, lambda name, axes, seed: {"losses": [9, 5, 3, 3 if name == "BN" and axes["iterations"] > 1 else 1]},
            {"methods": ("IN", "BN"), "settings": [{"iterations": n} for n in (1, 11)]},
            "not separable here", "between BN, n = 11 and IN", id="each setting is a comparison of its own",
        ),
        pytest.param(
            STABLE,
            lambda name, axes, seed: variants_as_in_the_paper("IN", axes, seed) | {
                "status": "diverged" if name == "IB" else "complete"
            }, {},
            "shown", "diverged (2 of 2) with IB", id="a variant that diverges is the less stable",
        ),
        pytest.param(
            LOSS, lambda name, axes, seed: {"losses": [9, {"unrolled": 100, "IN": 50, "BN": 1000}[name] + seed]},
            {"methods": ("unrolled", "IN", "BN")},
            "shown", "50 to 51 when implicit", id="unrolled is compared with the paper's method, not another solver",
        ),
    ],
)  # fmt: skip
def test_what_variants_show(claim, make, options, verdict, words):
    found = variants(make, **options)[claim]
    assert found.verdict == verdict and words in found.sentence


def test_what_a_grid_has_not_is_not_measured():
    def running(mode, axes, seed):
        return as_in_the_paper(mode, axes, seed) | {"status": "running" if mode == "unrolled" else "complete"}

    assert verdicts(judged(running))[LOSS] == "not measured"
    found = verdicts(judged(as_in_the_paper, methods=("IN",)))
    assert found[GROWS] == found[LOSS] == found[CLIP_NORM] == "not measured"
    assert verdicts(variants(variants_as_in_the_paper, MODES))[PLATEAU:] == ["not measured"] * 4
    assert verdicts(variants(variants_as_in_the_paper, ("IN", "BN")))[STABLE] == "not measured"
    without_ib = variants(variants_as_in_the_paper, ("unrolled", "IN", "BN"))[PLATEAU:MASKS]
    assert verdicts(without_ib) == ["shown", "shown", "not measured"]
    assert "with BN or IN" in without_ib[0].sentence and "BB" not in without_ib[1].sentence


@pytest.mark.parametrize(
    "slope, implicit_slope, verdict",
    [(5.0, 0.0, "shown"), (0.0, 0.0, "not separable here"), (0.0, 5.0, "not shown"), (-5.0, 0.0, "shown in part")],
)
def test_iterations(slope, implicit_slope, verdict):
    """The loss grows with n in one mode or the other; one that falls is sensitive too, but not as in the paper."""

    def make(mode, axes, seed):
        n = axes["iterations"]
        return {"loss": 100 + seed + 0.001 * n * seed + n * (slope if mode == "unrolled" else implicit_slope)}

    claim = judged(make, settings=[{"iterations": n} for n in (1, 5, 11)])[ITERATIONS]
    assert claim.verdict == verdict and "with n = 11" in claim.sentence and "with n = 1;" in claim.sentence


def test_a_full_product_is_compared_where_all_other_axes_agree():
    product = itertools.product(("on", "off"), ("on", "off"), (3, 7))
    settings = [{"clip": c, "decay": d, "warmup": "on", "iterations": n} for c, d, n in product]
    claims = judged(as_in_the_paper, settings, seeds=3)
    assert "in each of the 4 settings" in claims[CLIP_NORM].sentence and claims[WARMUP].verdict == "not measured"


@pytest.mark.parametrize(
    "measure, curve, expected",
    [
        (growth, [2.0, 9, 9, 9, 9, 9, 9, 9, 4, 8, 6], 3.0),
        (growth, [], math.nan),
        (late_growth, [1.0, 1, 4, 5, 6, 7, 10, 10, 10], 2.0),  # second quarter: steps 2 to 4
        (fall, [8, 4, 2, 1, 0.5], 75.0),
        (fall, [8, 4], math.nan),
        (setback, [8, 4, 2, 6, 1], 3.0),
        (setback, [8, 4], 1.0),
        (setback, [8], math.nan),
    ],
)
def test_what_is_measured_on_a_curve(measure, curve, expected):
    assert measure(pd.Series(curve, dtype=float)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "gradients, verdict", [(("unrolled", "implicit"), "for the eye"), (("implicit",), "not measured")]
)
def test_whether_masks_are_intuitive_is_left_to_the_eye(tmp_path, gradients, verdict):
    made = Grid(tmp_path)
    for gradient in gradients:
        made.cell(gradient, config={"class_path": "implicit_slate.training.SpatialBroadcastModule"})
    claim = judge(load_run(made.done()), PAPER["claims"][MASKS])
    assert claim.verdict == verdict and "masks" in claim.claim
