"""How claims are judged: two groups of cells are compared in every setting, and all comparisons give a verdict.

A part of a claim says that every value of one group of cells is above every value of another. The outcome in a setting
is *as claimed* if that is true (*by less* if the claim also needs a factor, which is not reached), *opposite* if every
value is below, and *open* if the ranges overlap. *One seed* has no range, so it decides nothing, whatever is compared
or counted. The value of a diverged cell counts as infinite.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from implicit_slate.report.numbers import capitalised, span
from implicit_slate.report.run import IMPLICIT, METHODS, PAPER, UNROLLED, Run

SHOWN, IN_PART, NOT_SHOWN = "shown", "shown in part", "not shown"
NOT_SEPARABLE, NOT_MEASURED = "not separable here", "not measured"
FOR_THE_EYE = "for the eye"
VERDICTS = (SHOWN, IN_PART, NOT_SHOWN, NOT_SEPARABLE, NOT_MEASURED, FOR_THE_EYE)


class Judgement(NamedTuple):
    """A claim of the paper, this grid's verdict on it, and the measured values in a sentence."""

    claim: str
    verdict: str
    sentence: str


class Outcome(NamedTuple):
    """The outcomes of one part of a claim, one for each comparison, and a description of them."""

    outcomes: Sequence[str]
    text: str


def judge(run: Run, claim: Mapping[str, Any]) -> Judgement:
    """The verdict of the finished cells of `run` on a claim of `claims.yaml`.

    - shown: every part holds in every setting;
    - shown in part: some part holds in most settings;
    - not shown: no part does, and for some part most settings show the opposite.

    A part that was not measured does not hold.
    """
    if "eye" in claim:
        pictured = {run.methods[method] for method in run.cells.loc[run.having("panels.png"), "method"]}
        there = claim["eye"] in run.shared_settings.get("model.class_path", "") and {UNROLLED, IMPLICIT} <= pictured
        return Judgement(claim["claim"], FOR_THE_EYE if there else NOT_MEASURED, claim["there" if there else "missing"])
    kinds = {"above": _higher, "every": _count, "alike": _alike}
    parts = [next(kind(run, part) for key, kind in kinds.items() if key in part) for part in claim["parts"]]
    present = [part for part in parts if part is not None]
    if not present or ("needs" in claim and not any(METHODS[name] in run.methods.values() for name in claim["needs"])):
        return Judgement(claim["claim"], NOT_MEASURED, "This grid has no finished cells that differ in this.")
    if all(part is not None and set(part.outcomes) == {"as claimed"} for part in parts):
        found = SHOWN
    elif any(_mostly(part, "as claimed", "by less") for part in present):
        found = IN_PART
    else:
        found = NOT_SHOWN if any(_mostly(part, "opposite") for part in present) else NOT_SEPARABLE
    return Judgement(claim["claim"], found, " ".join(f"{capitalised(part.text)}." for part in present))


def _group(run: Run, group: Mapping[str, Any]) -> tuple[str, pd.Index]:
    """The name and the cells of a group of `claims.yaml`."""
    chosen = run.cells["method"].astype(str) == run.label(METHODS[group["method"]])
    axes = {axis: value for axis, value in group.items() if axis not in ("words", "method")}
    for axis, value in axes.items():
        found = run.cells[axis]
        if value in ("min", "max"):  # over the axis' numeric values; it may also have others
            found = pd.to_numeric(found, errors="coerce").astype(float)
            axes[axis] = value = found.agg(value)
        chosen &= found == value
    return group["words"].format(**axes), run.cells.index[chosen]


def _higher(run: Run, part: Mapping[str, Any]) -> Outcome | None:
    """Whether every value of one group is above every value of each other group, in every setting that has both."""
    along = axes_over(run, part)
    axes = {axis for group in (part["above"], *part["below"]) for axis in group} - {"words", "method"} | set(along)
    if ("over" in part and not along) or not axes <= set(run.setting_axes):
        return None
    values, factor, several = values_of(run, part), part.get("factor", 1.0), len(part["below"]) > 1
    settings = run.settings_without(*axes)
    above, cells_above = _group(run, part["above"])
    groups = {words: cells for words, cells in (_group(run, group) for group in part["below"]) if len(cells)}
    outcomes, high, low = {}, {}, {}  # outcomes by comparison, values by cell
    for setting in settings[run.cells["setting"].sort_values(kind="stable").index].unique():
        here = values[settings[values.index] == setting]
        upper = here[here.index.isin(cells_above)]
        for words, cells in groups.items():
            lower = here[here.index.isin(cells)]
            if len(upper) and len(lower):
                outcomes[_variant(run, words, setting) if several else setting] = _outcome(upper, lower, factor)
                high |= upper.to_dict()
                low |= lower.to_dict()
    if not outcomes:
        return None
    below = ", ".join(groups)  # only groups that have cells are named
    below = f"with {' or '.join(below.rsplit(', ', 1))}" if several else below
    said = _outcomes_in_words(outcomes, above, factor, "comparisons" if several else "settings")
    what = part["what"].format(loss=run.loss_name)
    return Outcome(
        [*outcomes.values()], f"{what} {span([*high.values()])} {above}, {span([*low.values()])} {below}; {said}"
    )


def _outcome(above: pd.Series, below: pd.Series, factor: float) -> str:
    if min(len(above), len(below)) < 2:
        return "one seed"
    if above.min() > below.max():
        return "as claimed" if above.min() >= factor * below.max() else "by less"
    return "opposite" if above.max() < below.min() else "open"


def _outcomes_in_words(outcomes: Mapping[str, str], above: str, factor: float, kind: str) -> str:
    words = {key: text.format(above=above, factor=factor) for key, text in PAPER["outcomes"].items()}
    said = []
    for outcome in [outcome for outcome in words if outcome in outcomes.values()]:
        where = [place for place, found in outcomes.items() if found == outcome]
        if len(where) == len(outcomes):
            said.append(words[outcome] + (f" in each of the {len(where)} {kind}" if len(where) > 1 else ""))
        else:
            names = f" ({'; '.join(where)})" if len(where) <= 3 else ""
            said.append(f"{words[outcome]} in {len(where)} of {len(outcomes)}{'' if said else f' {kind}'}{names}")
    return ", ".join(said)


def _count(run: Run, part: Mapping[str, Any]) -> Outcome | None:
    """Whether every value of one group is at least (or at most) a limit, and no value of another group is."""
    found, outcomes, counts, spans = values_of(run, part), [], [], []
    for key in ("every", "none"):
        if key in part:
            words, cells = _group(run, part[key])
            values = found[found.index.isin(cells)]
            holds = values >= part["at_least"] if "at_least" in part else values <= part["at_most"]
            hits = holds.sum() if key == "every" else (~holds).sum()
            if values.empty:
                return None
            if run.cells.loc[values.index, "setting"].value_counts().max() < 2:
                outcomes.append("one seed")
            else:
                outcomes.append("as claimed" if hits == len(values) else "opposite" if hits == 0 else "open")
            counts.append(f"{holds.sum()} of {len(values)} {words}")
            spans.append(span(list(values)))
    return Outcome(outcomes, part["what"].format(loss=run.loss_name, counts=" and ".join(counts), span=spans[0]))


def _alike(run: Run, part: Mapping[str, Any]) -> Outcome | None:
    """Whether the medians of every two methods are within a factor. The outcome is *opposite* if they are not and the
    ranges over seeds do not overlap either."""
    values, factor, outcomes, apart = values_of(run, part), part["factor"], [], []
    methods = run.cells.loc[values.index, "method"]
    groups = {name: values[methods == run.label(METHODS[name])] for name in part["alike"]}
    for setting, (one, other) in itertools.product(run.settings, itertools.combinations(groups, 2)):
        here = run.cells.index[run.cells["setting"] == setting]
        low, high = sorted((groups[name][groups[name].index.isin(here)] for name in (one, other)), key=pd.Series.median)
        if low.empty or high.empty:
            continue
        if min(len(low), len(high)) < 2:
            outcomes.append("one seed")
        elif high.median() <= factor * low.median() < math.inf:
            outcomes.append("as claimed")
        else:
            outcomes.append("opposite" if low.max() < high.min() else "open")
            apart.append(f"{_variant(run, one, setting)} and {other}")
    ranges = ", ".join(f"{span(list(found))} with {name}" for name, found in groups.items() if len(found))
    said = ["there is only one seed"] if "one seed" in outcomes else []
    if apart:
        said.append(f"the medians differ by more than {factor:g} times between {'; '.join(apart)}")
    elif "as claimed" in outcomes:
        said.append(f"no medians differ by more than {factor:g} times")
    text = f"{part['what'].format(loss=run.loss_name)} {ranges}; {'; '.join(said)}"
    return Outcome(outcomes, text) if outcomes else None


def _mostly(part: Outcome, *outcomes: str) -> bool:
    return sum(found in outcomes for found in part.outcomes) > len(part.outcomes) / 2


def _variant(run: Run, name: str, setting: str) -> str:
    return name if len(run.settings) < 2 else f"{name}, {setting}"


def values_of(run: Run, part: Mapping[str, str]) -> pd.Series:
    """The values that a part of a claim compares: a number for each finished cell that has one, infinity for diverged
    cells. `claims.yaml` explains the keys `of`, `curve` and `over` of `part`."""
    if "over" in part:
        return _worst_to_best(run, axes_over(run, part))
    column, diverged = run.loss if part["of"] == "loss" else part["of"], run.finished["status"] == "diverged"
    if "curve" not in part:
        return run.finished[column].mask(diverged, math.inf).dropna()
    measure = OF_CURVES[part["curve"]]
    found = pd.Series({cell: measure(run.curve(cell, column)) for cell in run.finished.index}, dtype=float)
    if measure is fall:  # has a meaning only for completed training
        return found[~diverged].dropna()
    return found.mask(diverged, math.inf).dropna()


def axes_over(run: Run, part: Mapping[str, str]) -> list[str]:
    """The varied axes over which a part with `over` aggregates the cells."""
    return run.tricks if part.get("over") == "tricks" else [a for a in run.setting_axes if a == part.get("over")]


def growth(curve: pd.Series, start: float = 0.0, end: float = 0.0) -> float:
    """The median over the last quarter of training, divided by the median from `start` to `end`, which are fractions of
    training from 0 to 1; by default by the first measurement, at step 0.

    At step 0 the weights are random, and both modes move away from them. So this measure alone does not distinguish
    steady growth from a rise in the first steps; `late growth` is relative to the second quarter.
    """
    if len(curve) < 4:
        return math.nan
    progress = (curve.index - curve.index[0]) / (curve.index[-1] - curve.index[0])
    before = curve[(progress >= start) & (progress <= end)].median()
    return curve[progress >= 0.75].median() / before if before > 0 else math.nan


def fall(curve: pd.Series) -> float:
    """The decrease from the middle of training to the end, in per cent of the value in the middle."""
    if len(curve) < 4:
        return math.nan
    middle = curve[curve.index >= (curve.index[0] + curve.index[-1]) / 2].iloc[0]
    return 100 * (1 - curve.iloc[-1] / middle) if middle > 0 else math.nan


def setback(curve: pd.Series) -> float:
    """The largest ratio of a value to the lowest value before it; at least 1."""
    return (curve / curve.cummin()).max() if len(curve) >= 2 and curve.min() > 0 else math.nan


late_growth = functools.partial(growth, start=0.25, end=0.5)
OF_CURVES = {"growth": growth, "late growth": late_growth, "fall": fall, "setback": setback}
"""Measures of a curve by step; NaN if the curve is too short."""


def _worst_to_best(run: Run, axes: Sequence[str]) -> pd.Series:
    """For each seed the worst final loss along `axes` divided by the best, all other axes being equal. The result is
    indexed by the first cell of each group, whose cells must all be finished."""
    losses = values_of(run, {"of": "loss"}).reindex(run.cells.index)
    keys = [run.settings_without(*axes), run.cells["method"], run.cells.get("seed", losses)]
    found = {}
    for _, group in losses.groupby(keys, sort=False, dropna=False, observed=True):
        if len(group) > 1 and group.notna().all():
            found[group.index[0]] = math.inf if math.isinf(group.max()) else group.max() / group.min()
    return pd.Series(found, dtype=float)
