"""The verdicts on the paper's claims about solvers follow the numbers."""

import math
from pathlib import Path

import numpy as np
import pytest

from implicit_slate.ablation.report.claims import judge
from implicit_slate.ablation.report.methods import BB, BN, IB, IN, UNROLLED, Method
from implicit_slate.ablation.report.run import CROSS_ENTROPY, Cell, Curve, Run
from implicit_slate.ablation.report.solver_claims import fall, judge_solvers, setback

VARIANTS = (UNROLLED, IN, IB, BN, BB)
PLATEAU, ALIKE, STABLE = range(3)


def cell(method: Method, seed: int, curve, status="complete", gradient_norm=10.0, **axes) -> Cell:
    curve = Curve(np.arange(len(curve)), np.array(curve, float))
    row = {CROSS_ENTROPY: curve.values[-1], "grad_norm_max": gradient_norm}
    axes = {"gradient": method.gradient, "solver": method.solver, **axes, "seed": seed}
    return Cell(str(axes), status, axes, row, Path("x"), {CROSS_ENTROPY: curve})


def grid(make, methods=VARIANTS, seeds=2) -> Run:
    """A run of which `make(method, seed)` gives each cell's keywords."""
    return Run(Path("x"), {}, [cell(method, seed, **make(method, seed)) for method in methods for seed in range(seeds)])


def as_in_the_paper(method, seed):
    noise = 0.1 * seed
    if method == UNROLLED:
        return {"curve": [300, 140, 131, 130, 130 + noise]}
    if method == IB:
        return {"curve": [300, 50, 90 + noise, 20, 30], "gradient_norm": 500 + noise}
    return {"curve": [300, 50, 30, 20, 13 + noise]}


def verdicts(run):
    return [claim.verdict for claim in judge_solvers(run)]


def test_everything_is_shown_where_everything_is_as_in_the_paper():
    assert verdicts(grid(as_in_the_paper)) == ["shown"] * 3


def test_the_sentences_hold_the_measured_figures():
    plateau, alike, stable = judge_solvers(grid(as_in_the_paper))
    assert "falls by 0.687 to 0.763% when unrolled, by no more than 5% in 2 of 2 cells" in plateau.sentence
    assert (
        "Final validation cross-entropy: 130 when unrolled, 13 to 13.1 with BB, BN or IN; "
        "every seed is higher when unrolled in each of the 3 comparisons." in plateau.sentence
    )
    assert "differ by a factor of 1 at most" in alike.sentence
    assert "lowest before it: 1.80 with IB, 1 with BB, BN or IN; every seed is higher with IB" in stable.sentence


def test_everything_is_refuted_where_it_is_the_other_way_round():
    def make(method, seed):
        if method == UNROLLED:
            return {"curve": [300, 200, 100, 50, 10 + seed]}
        level = {IN: 40, BN: 90, BB: 200, IB: 20}[method] + seed
        jump = 1 if method == IB else 2
        return {"curve": [300, 3 * level, 2 * level, 2 * level * jump, level], "gradient_norm": 100 * jump + seed}

    assert verdicts(grid(make)) == ["not shown"] * 3


def test_lower_but_not_by_far_is_a_part():
    def make(method, seed):
        return {"curve": [300, 140, 131, 130, 130]} if method == UNROLLED else {"curve": [300, 120, 110, 100, 100]}

    plateau = judge_solvers(grid(make))[PLATEAU]
    assert plateau.verdict == "shown in part"
    assert "every seed is higher when unrolled, but not by 5 times" in plateau.sentence


def test_medians_that_differ_while_the_seeds_overlap_decide_nothing():
    final = {IN: (10, 40), BN: (20, 60), BB: (12, 41), IB: (1, 1), UNROLLED: (1, 1)}
    claim = judge_solvers(grid(lambda method, seed: {"curve": [99, 99, 99, final[method][seed]]}))[ALIKE]
    assert claim.verdict == "not separable here"
    assert "by more than 1.2 between BB and BN; BN and IN" in claim.sentence


def test_one_seed_decides_nothing():
    claims = judge_solvers(grid(as_in_the_paper, seeds=1))
    assert claims[ALIKE].verdict == claims[STABLE].verdict == "not separable here"
    assert "there is one seed only" in claims[ALIKE].sentence


def test_a_variant_that_diverges_is_the_less_stable():
    def make(method, seed):
        return as_in_the_paper(IN, seed) | {"status": "diverged" if method == IB else "complete"}

    stable = judge_solvers(grid(make))[STABLE]
    assert stable.verdict == "shown" and "diverged (2 of 2) with IB" in stable.sentence


def test_variants_that_all_diverge_are_not_alike():
    claim = judge_solvers(grid(lambda method, seed: as_in_the_paper(method, seed) | {"status": "diverged"}))[ALIKE]
    assert claim.verdict == "not separable here"


def test_what_a_grid_has_not_is_not_measured():
    assert verdicts(grid(as_in_the_paper, (UNROLLED, IN))) == ["not measured"] * 3
    assert verdicts(grid(as_in_the_paper, (IN, BN)))[STABLE] == "not measured"
    without_ib = judge_solvers(grid(as_in_the_paper, (UNROLLED, IN, BN)))
    assert [claim.verdict for claim in without_ib] == ["shown", "shown", "not measured"]
    assert "with BN or IN" in without_ib[PLATEAU].sentence and "BB" not in without_ib[ALIKE].sentence


def test_each_setting_is_a_comparison_of_its_own():
    cells = [
        cell(method, seed, [300, 50, 30, 30 if method == BN and n == 11 else 10], iterations=n)
        for method in (IN, BN) for seed in (0, 1) for n in (1, 11)
    ]  # fmt: skip
    claim = judge_solvers(Run(Path("x"), {}, cells))[ALIKE]
    assert claim.verdict == "not separable here" and "between BN, n = 11 and IN" in claim.sentence


def test_unrolled_is_compared_with_the_papers_method_and_not_with_other_solvers():
    """Implicit after Broyden is far off, and the claim on both modes does not hear of it."""

    def make(method, seed):
        return {"curve": [9, 9, 9, {UNROLLED: 100, IN: 50, BN: 1000}[method] + seed]}

    claim = judge(grid(make, (UNROLLED, IN, BN)))[1]
    assert claim.verdict == "shown" and "50 to 51 when implicit" in claim.sentence


@pytest.mark.parametrize(
    "curve, status, expected_fall, expected_setback",
    [
        ([8, 4, 2, 1, 0.5], "complete", 0.75, 1.0),
        ([8, 4, 2, 6, 1], "complete", 0.5, 3.0),
        ([8, 4, 2, 6, 4], "diverged", None, math.inf),
        ([8, 4], "complete", None, 1.0),
        ([8], "complete", None, None),
    ],
)
def test_fall_and_setback(curve, status, expected_fall, expected_setback):
    made = cell(IN, 0, curve, status)
    assert fall(made, CROSS_ENTROPY) == expected_fall and setback(made, CROSS_ENTROPY) == expected_setback
