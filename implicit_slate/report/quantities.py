"""What the claims compare: numbers of each finished cell, from its results or from its curves."""

import math
from collections.abc import Sequence

import pandas as pd

from implicit_slate.report.run import Run


def values_of(run: Run, quantity: str) -> pd.Series:
    """A number for each finished cell that has one, by cell; infinity for one that has diverged.

    Args:
        quantity: a column of `run.cells`; `loss`; `<name> of <tag>` with one of `OF_CURVES`; `loss over <axes>`.
    """
    name, _, axes = quantity.partition(" over ")
    if axes:
        return _worst_to_best(run, axes_over(run, quantity))
    name, _, tag = name.partition(" of ")
    if not tag:
        found = run.finished[run.loss if name == "loss" else name]
    else:
        tag = run.loss if tag == "loss" else tag
        found = pd.Series({c: OF_CURVES[name](run.curve(c, tag)) for c in run.finished.index}, dtype=float)
        if name == "fall":  # of training that was finished
            return found[run.finished["status"] == "complete"].dropna()
    return found.mask(run.finished["status"] == "diverged", math.inf).dropna()


def axes_over(run: Run, quantity: str) -> list[str] | None:
    """The axes along which `loss over <axes>` sums up the cells, as far as the grid varies them; None of others."""
    axes = quantity.partition(" over ")[2]
    if not axes:
        return None
    return run.tricks if axes == "tricks" else [axis for axis in run.setting_axes if axis == axes]


def growth(curve: pd.Series) -> float:
    """The median over the last quarter of training, relative to the first measurement, at step 0.

    There the weights are random. Both modes move away from that, so this alone does not tell a steady growth from a
    rise in the first steps: see `late_growth`.
    """
    return _to_last_quarter(curve, 0.0, 0.0)


def late_growth(curve: pd.Series) -> float:
    """The median over the last quarter of training, relative to the one over the second quarter."""
    return _to_last_quarter(curve, 0.25, 0.5)


def fall(curve: pd.Series) -> float:
    """By how many per cent of the value in the middle of training it is lower at the end."""
    if len(curve) < 4:
        return math.nan
    middle = curve[curve.index >= (curve.index[0] + curve.index[-1]) / 2].iloc[0]
    return 100 * (1 - curve.iloc[-1] / middle) if middle > 0 else math.nan


def setback(curve: pd.Series) -> float:
    """The largest ratio of a value to the lowest before it, at least 1."""
    return (curve / curve.cummin()).max() if len(curve) >= 2 and curve.min() > 0 else math.nan


OF_CURVES = {"growth": growth, "late growth": late_growth, "fall": fall, "setback": setback}
"""Each takes a curve by step and gives NaN where it is too short."""


def _to_last_quarter(curve: pd.Series, start: float, end: float) -> float:
    """The median from 3/4 of training on, relative to the one between two parts of training (0 to 1)."""
    if len(curve) < 4:
        return math.nan
    progress = (curve.index - curve.index[0]) / (curve.index[-1] - curve.index[0])
    before = curve[(progress >= start) & (progress <= end)].median()
    return curve[progress >= 0.75].median() / before if before > 0 else math.nan


def _worst_to_best(run: Run, axes: Sequence[str]) -> pd.Series:
    """Of each seed the worst final loss along `axes` divided by its best, all else alike, at the first cell of those.
    All of them must be finished."""
    losses = values_of(run, "loss").reindex(run.cells.index)
    keys = [run.settings_without(axes), list(run.cells["method"]), list(run.cells.get("seed", losses))]
    found = {}
    for _, group in losses.groupby(keys, sort=False, dropna=False):
        if len(group) > 1 and group.notna().all():
            found[group.index[0]] = math.inf if math.isinf(group.max()) else group.max() / group.min()
    return pd.Series(found, dtype=float)
