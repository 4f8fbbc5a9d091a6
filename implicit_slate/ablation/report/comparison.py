"""How a claim is held against cells: groups of seeds that are compared, setting by setting, and a verdict from them.

A claim is taken apart into comparisons of two groups of seeds, one of which the claim says lies above the other. A
comparison goes *as claimed* where every value of the one group lies above every value of the other (*by less* where it
falls short of a factor that the claim needs), *opposite* where every value lies below, and stays *open* where the
ranges overlap. A group of *one seed* has no range and decides nothing. A diverged cell counts as above every number.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from implicit_slate.ablation.report.formatting import capitalised, span
from implicit_slate.ablation.report.run import Cell

SHOWN, IN_PART, NOT_SHOWN = "shown", "shown in part", "not shown"
NOT_SEPARABLE, NOT_MEASURED = "not separable here", "not measured"
FOR_THE_EYE = "for the eye"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, the verdict of this grid on it, and the measured figures in a sentence."""

    claim: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Part:
    """One thing that a claim says: an outcome for every setting it was compared in, and the figures in words."""

    outcomes: Sequence[str]
    text: str

    @property
    def holds(self) -> bool:
        return all(outcome == "as claimed" for outcome in self.outcomes)

    def mostly(self, *outcomes: str) -> bool:
        return sum(found in outcomes for found in self.outcomes) > len(self.outcomes) / 2


@dataclass(frozen=True)
class Pair:
    """Two groups of values in one setting; the claim says that `above` lies above `below`, and `factor` times so."""

    setting: str
    above: Sequence[float]
    below: Sequence[float]
    factor: float = 1.0

    @property
    def outcome(self) -> str:
        if min(len(self.above), len(self.below)) < 2:
            return "one seed"
        if min(self.above) > max(self.below):
            return "as claimed" if min(self.above) >= self.factor * max(self.below) else "by less"
        return "opposite" if max(self.above) < min(self.below) else "open"


def result_of(key: str) -> Callable[[Cell], float | None]:
    """Reads a value of a cell's row; infinite where the cell has diverged."""
    return lambda cell: math.inf if cell.status == "diverged" else cell.number(key)


def values_of(cells: Sequence[Cell], value: Callable[[Cell], float | None]) -> list[float]:
    """The values of the finished cells that have one."""
    found = [value(cell) for cell in cells if cell.finished]
    return [number for number in found if number is not None]


def judged(claim: str, *parts: Part | None) -> Claim:
    """The claim with its verdict. Shown: every part holds in every setting; in part: some part holds in most settings;
    not shown: no part does, and some lies the other way round in most. A part that is missing does not hold."""
    present = [part for part in parts if part is not None]
    if not present:
        return Claim(claim, NOT_MEASURED, "This grid has no finished cells that differ in this.")
    if all(part is not None and part.holds for part in parts):
        verdict = SHOWN
    elif any(part.mostly("as claimed", "by less") for part in present):
        verdict = IN_PART
    else:
        verdict = NOT_SHOWN if any(part.mostly("opposite") for part in present) else NOT_SEPARABLE
    return Claim(claim, verdict, " ".join(f"{capitalised(part.text)}." for part in present))


def compare(pairs: Sequence[Pair], what: str, above: str, below: str, kind: str = "settings") -> Part | None:
    """The part that says `above` lies above `below`, with the ranges over all pairs and what happened in each; `kind`
    is what the pairs are called together."""
    pairs = [pair for pair in pairs if pair.above and pair.below]
    if not pairs:
        return None
    outcomes = [pair.outcome for pair in pairs]
    high, low = span(_pooled(pair.above for pair in pairs)), span(_pooled(pair.below for pair in pairs))
    return Part(outcomes, f"{what} {high} {above}, {low} {below}; {_in_words(pairs, outcomes, above, kind)}")


def _pooled(groups: Iterable[Sequence[float]]) -> list[float]:
    """All values; a group that takes part in several comparisons counts once."""
    return [value for group in {id(group): group for group in groups}.values() for value in group]


def _in_words(pairs: Sequence[Pair], outcomes: Sequence[str], above: str, kind: str) -> str:
    words = {
        "as claimed": f"every seed is higher {above}",
        "by less": f"every seed is higher {above}, but not by {max(pair.factor for pair in pairs):g} times",
        "open": "the seeds overlap",
        "opposite": f"every seed is lower {above}",
        "one seed": "there is one seed only",
    }
    if len(set(outcomes)) == 1:
        where = f" in each of the {len(pairs)} {kind}" if len(pairs) > 1 else ""
        return f"{words[outcomes[0]]}{where}"
    said = []
    for outcome, word in words.items():
        where = [pair.setting for pair, found in zip(pairs, outcomes) if found == outcome]
        if where:
            names = f" ({'; '.join(where)})" if len(where) <= 3 else ""
            said.append(f"{word} in {len(where)} of {len(pairs)}{'' if said else f' {kind}'}{names}")
    return ", ".join(said)
