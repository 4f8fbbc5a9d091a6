"""The paper's claims on forward and backward solvers (its later text), each held against this grid's rows.

The variants are unrolled, IN, IB, BN and BB; see `methods.py`. How a verdict comes about is told in `comparison.py`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from implicit_slate.ablation.report.comparison import Claim, Pair, Part, compare, judged, result_of, values_of
from implicit_slate.ablation.report.formatting import short, span
from implicit_slate.ablation.report.methods import BB, BN, IB, IN, PAPER_NAMES, UNROLLED, Method
from implicit_slate.ablation.report.run import Cell, Run

PLATEAU = 0.05
"""The part of the loss by which it falls at most in the second half of training where it is said to plateau."""

ABOUT_TENFOLD = 5.0
"""The factor from which on one loss is said to be about ten times the other."""

ALIKE = 1.2
"""The factor between the medians over seeds up to which two variants are said to be alike."""


def judge_solvers(run: Run) -> list[Claim]:
    """The claims on the paper's variants, held against the finished cells of `run`."""
    stable = (BB, BN, IN)
    has_variants = any(method in run.methods for method in (IB, BN, BB))  # else these claims would only repeat others
    loss, gradient_norm = result_of(run.loss), result_of("grad_norm_max")
    ratio = f"largest ratio of a {run.loss_name} to the lowest before it:"
    return [
        judged(
            "Unrolled, training plateaus; with BB, BN and IN the loss ends about 10 times lower "
            f"(held to be so from {ABOUT_TENFOLD:g} times on).",
            _plateau(run) if has_variants else None,
            _against(run, UNROLLED, stable, f"final {run.loss_name}:", loss, ABOUT_TENFOLD) if has_variants else None,
        ),
        judged(
            f"BB, BN and IN end alike (held to be so where the medians over seeds are within a factor of {ALIKE:g}).",
            _alike(run, stable),
        ),
        judged(
            "IB is less stable than BB, BN and IN.",
            _against(run, IB, stable, ratio, partial(setback, loss=run.loss)),
            _against(run, IB, stable, "largest gradient norm:", gradient_norm),
        ),
    ]


def fall(cell: Cell, loss: str) -> float | None:
    """The part of the validation loss in the middle of training by which it is lower at the end; not if it diverged."""
    curve = cell.curves.get(loss)
    if cell.status != "complete" or curve is None or len(curve.steps) < 4:
        return None
    middle = curve.values[curve.steps >= (curve.steps[0] + curve.steps[-1]) / 2][0]
    return float(1 - curve.values[-1] / middle) if middle > 0 else None


def setback(cell: Cell, loss: str) -> float | None:
    """The largest ratio of a validation loss to the lowest before it, at least 1; infinite if the cell diverged."""
    if cell.status == "diverged":
        return math.inf
    curve = cell.curves.get(loss)
    if curve is None or len(curve.steps) < 2 or curve.values.min() <= 0:
        return None
    return float((curve.values / np.minimum.accumulate(curve.values)).max())


def _plateau(run: Run) -> Part | None:
    falls = values_of(run.of(method=UNROLLED), lambda cell: fall(cell, run.loss))
    if not falls:
        return None
    count = sum(found <= PLATEAU for found in falls)
    outcome = "as claimed" if count == len(falls) else "opposite" if count == 0 else "open"
    percent = span([100 * found for found in falls])
    return Part(
        [outcome],
        f"in the second half of training the {run.loss_name} falls by {percent}% when unrolled, "
        f"by no more than {100 * PLATEAU:g}% in {count} of {len(falls)} cells",
    )


def _against(
    run: Run,
    high: Method,
    low: Sequence[Method],
    what: str,
    value: Callable[[Cell], float | None],
    factor: float = 1.0,
) -> Part | None:
    """`high` lies above each of `low`, in every setting."""
    low = [method for method in low if method in run.methods]  # what is not there is not named
    pairs = []
    for setting in run.settings:
        above = values_of(run.of(setting, high), value)
        for method in low:
            below = values_of(run.of(setting, method), value)
            pairs.append(Pair(_name(run, setting, method), above, below, factor))
    names = ", ".join(PAPER_NAMES[method] for method in low)
    highest = "when unrolled" if high == UNROLLED else f"with {PAPER_NAMES[high]}"
    return compare(pairs, what, highest, f"with {' or '.join(names.rsplit(', ', 1))}", "comparisons")


def _alike(run: Run, methods: Sequence[Method]) -> Part | None:
    """The medians of every two of `methods` are close; apart are they where the ranges over seeds are apart, too."""
    loss = result_of(run.loss)
    outcomes, apart, ratios = [], [], []
    for setting in run.settings:
        for one, other in itertools.combinations(methods, 2):
            values = values_of(run.of(setting, one), loss), values_of(run.of(setting, other), loss)
            if not all(values):
                continue
            low, high = sorted(values, key=np.median)
            ratio = float(np.median(high) / np.median(low)) if math.isfinite(np.median(low)) else math.inf
            ratios.append(ratio)
            if min(map(len, values)) < 2:
                outcomes.append("one seed")
            elif ratio <= ALIKE:
                outcomes.append("as claimed")
            else:
                outcomes.append("opposite" if max(low) < min(high) else "open")
                apart.append(f"{_name(run, setting, one)} and {PAPER_NAMES[other]}")
    if not outcomes:
        return None
    ranges = [(PAPER_NAMES[method], values_of(run.of(method=method), loss)) for method in methods]
    text = (
        f"final {run.loss_name}: {', '.join(f'{span(found)} with {name}' for name, found in ranges if found)}; "
        f"the medians of two variants differ by a factor of {short(max(ratios))} at most"
    )
    if apart:
        text += f", and by more than {ALIKE:g} between {'; '.join(apart)}"
    if "one seed" in outcomes:
        text += "; there is one seed only"
    return Part(outcomes, text)


def _name(run: Run, setting: str, method: Method) -> str:
    return PAPER_NAMES[method] if len(run.settings) < 2 else f"{PAPER_NAMES[method]}, {setting}"
