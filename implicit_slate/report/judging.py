"""How a claim is judged: groups of cells that are compared, setting by setting, and a verdict from all comparisons.

A comparison says that every value of one group of cells lies above every value of another. In a setting it goes *as
claimed* where that is so (*by less* where it falls short of a factor that the claim needs), *opposite* where every
value lies below, and stays *open* where the ranges overlap. *One seed* has no range and decides nothing. A diverged
cell counts as above every number.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from implicit_slate.report.numbers import capitalised, span
from implicit_slate.report.quantities import axes_over, values_of
from implicit_slate.report.run import IMPLICIT, PAPER_NAMES, UNROLLED, Run
from implicit_slate.yaml_files import load_yaml

_PAPER = load_yaml(Path(__file__).with_name("claims.yaml"))

CLAIMS, PAPER = _PAPER["claims"], _PAPER["results"]
"""What the paper says, and the numbers of its results table."""

SHOWN, IN_PART, NOT_SHOWN = "shown", "shown in part", "not shown"
NOT_SEPARABLE, NOT_MEASURED = "not separable here", "not measured"
FOR_THE_EYE = "for the eye"
VERDICTS = (SHOWN, IN_PART, NOT_SHOWN, NOT_SEPARABLE, NOT_MEASURED, FOR_THE_EYE)

METHODS = {name: method for method, name in PAPER_NAMES.items()}


class Judgement(NamedTuple):
    """A claim of the paper, the verdict of this grid on it, and the measured figures in a sentence."""

    claim: str
    verdict: str
    sentence: str


class Outcome(NamedTuple):
    """What came of one part of a claim in each comparison, and all of it in words."""

    outcomes: Sequence[str]
    text: str


class Pair(NamedTuple):
    """Two groups of values by cell, in one setting; the claim says that `above` lies above `below`."""

    setting: str
    above: pd.Series
    below: pd.Series

    def outcome(self, factor: float = 1.0) -> str:
        if min(len(self.above), len(self.below)) < 2:
            return "one seed"
        if self.above.min() > self.below.max():
            return "as claimed" if self.above.min() >= factor * self.below.max() else "by less"
        return "opposite" if self.above.max() < self.below.min() else "open"


def judge(run: Run) -> list[Judgement]:
    """The verdicts of the finished cells of `run` on all claims of `claims.yaml`."""
    return [_judge(run, claim) for claim in CLAIMS]


def verdict(claim: str, parts: Sequence[Outcome | None]) -> Judgement:
    """Shown: every part holds in every setting; in part: some part holds in most settings; not shown: no part does, and
    some lies the other way round in most. A part that was not measured (None) does not hold."""
    present = [part for part in parts if part is not None]
    if not present:
        return Judgement(claim, NOT_MEASURED, "This grid has no finished cells that differ in this.")
    if all(part is not None and set(part.outcomes) == {"as claimed"} for part in parts):
        found = SHOWN
    elif any(_mostly(part, "as claimed", "by less") for part in present):
        found = IN_PART
    else:
        found = NOT_SHOWN if any(_mostly(part, "opposite") for part in present) else NOT_SEPARABLE
    return Judgement(claim, found, " ".join(f"{capitalised(part.text)}." for part in present))


def compare(
    pairs: Sequence[Pair], what: str, above: str, below: str, factor: float = 1.0, kind: str = "settings"
) -> Outcome | None:
    """The outcome of each pair, and a sentence with the ranges over all pairs; None if no pair has values on both
    sides. `above` and `below` name the two groups, `kind` the pairs."""
    pairs = [pair for pair in pairs if len(pair.above) and len(pair.below)]
    if not pairs:
        return None
    outcomes = [pair.outcome(factor) for pair in pairs]
    pooled = (pd.concat([getattr(pair, side) for pair in pairs]) for side in ("above", "below"))
    high, low = (span(list(found[~found.index.duplicated()])) for found in pooled)  # a cell may be in several pairs
    words = {
        "as claimed": f"every seed is higher {above}",
        "by less": f"every seed is higher {above}, but not by {factor:g} times",
        "open": "the seeds overlap",
        "opposite": f"every seed is lower {above}",
        "one seed": "there is one seed only",
    }
    said = []
    for outcome in sorted(set(outcomes), key=list(words).index):
        where = [pair.setting for pair, found in zip(pairs, outcomes) if found == outcome]
        if len(where) == len(pairs):
            said.append(words[outcome] + (f" in each of the {len(pairs)} {kind}" if len(pairs) > 1 else ""))
        else:
            names = f" ({'; '.join(where)})" if len(where) <= 3 else ""
            said.append(f"{words[outcome]} in {len(where)} of {len(pairs)}{'' if said else f' {kind}'}{names}")
    return Outcome(outcomes, f"{what} {high} {above}, {low} {below}; {', '.join(said)}")


def _judge(run: Run, claim: Mapping[str, Any]) -> Judgement:
    if "eye" in claim:
        pictured = {run.methods[method] for method in run.cells.loc[run.pictured, "method"]}
        there = claim["eye"] in run.shared_settings.get("model.class_path", "") and {UNROLLED, IMPLICIT} <= pictured
        return Judgement(claim["claim"], FOR_THE_EYE if there else NOT_MEASURED, claim["there" if there else "missing"])
    if "needs" in claim and not any(METHODS[name] in run.methods.values() for name in claim["needs"]):
        return verdict(claim["claim"], [])
    kinds = {"above": _higher, "every": _count, "alike": _alike}
    parts = [next(judge(run, part) for key, judge in kinds.items() if key in part) for part in claim["parts"]]
    return verdict(claim["claim"], parts)


def _group(run: Run, group: Mapping[str, Any]) -> tuple[str, pd.Index]:
    """What a group of `claims.yaml` is called, and its cells."""
    chosen = run.cells["method"].astype(str) == run.label(METHODS[group["method"]])
    axes = {axis: value for axis, value in group.items() if axis not in ("words", "method")}
    for axis, value in axes.items():
        axes[axis] = run.cells[axis].agg(value) if value in ("min", "max") else value
        chosen &= run.cells[axis] == axes[axis]
    return group["words"].format(**axes), run.cells.index[chosen]


def _higher(run: Run, part: Mapping[str, Any]) -> Outcome | None:
    """Every value of one group lies above every value of each other group."""
    along = axes_over(run, part["of"])
    axes = {axis for group in (part["above"], *part["below"]) for axis in group} - {"words", "method"}
    axes.update(along or ())
    if along == [] or not axes <= set(run.setting_axes):
        return None
    values = values_of(run, part["of"])
    settings = pd.Series(run.settings_without(tuple(axes)), run.cells.index)
    name, above = _group(run, part["above"])
    groups = [(words, cells) for words, cells in (_group(run, group) for group in part["below"]) if len(cells)]
    several, pairs = len(part["below"]) > 1, []
    for setting in settings[run.cells["setting"].sort_values(kind="stable").index].unique():
        here = values[settings[values.index] == setting]
        for words, cells in groups:
            place = _variant(run, words, setting) if several else setting
            pairs.append(Pair(place, here[here.index.isin(above)], here[here.index.isin(cells)]))
    names = ", ".join(words for words, _ in groups)  # what is not there is not named
    low = f"with {' or '.join(names.rsplit(', ', 1))}" if several else names
    kind = "comparisons" if several else "settings"
    return compare(pairs, part["what"].format(loss=run.loss_name), name, low, part.get("factor", 1.0), kind)


def _count(run: Run, part: Mapping[str, Any]) -> Outcome | None:
    """Every value of one group is at least or at most something, and no value of another."""
    found, outcomes, counts, spans = values_of(run, part["of"]), [], [], []
    for key in ("every", "none"):
        if key in part:
            words, cells = _group(run, part[key])
            values = found[found.index.isin(cells)]
            holds = values >= part["at_least"] if "at_least" in part else values <= part["at_most"]
            hits = holds.sum() if key == "every" else (~holds).sum()
            if values.empty:
                return None
            outcomes.append("as claimed" if hits == len(values) else "opposite" if hits == 0 else "open")
            counts.append(f"{holds.sum()} of {len(values)} {words}")
            spans.append(span(list(values)))
    return Outcome(outcomes, part["what"].format(loss=run.loss_name, counts=" and ".join(counts), span=spans[0]))


def _alike(run: Run, part: Mapping[str, Any]) -> Outcome | None:
    """The medians of every two methods are within a factor; apart are they where the ranges over seeds are so, too."""
    values, factor, outcomes, apart = values_of(run, part["of"]), part["factor"], [], []
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
    differ = f"the medians differ by more than {factor:g} times between {'; '.join(apart)}"
    said = ["there is one seed only"] if "one seed" in outcomes else []
    said.append(differ if apart else f"no medians differ by more than {factor:g} times")
    text = f"{part['what'].format(loss=run.loss_name)} {ranges}; {'; '.join(said)}"
    return Outcome(outcomes, text) if outcomes else None


def _mostly(part: Outcome, *outcomes: str) -> bool:
    return sum(found in outcomes for found in part.outcomes) > len(part.outcomes) / 2


def _variant(run: Run, name: str, setting: str) -> str:
    return name if len(run.settings) < 2 else f"{name}, {setting}"
