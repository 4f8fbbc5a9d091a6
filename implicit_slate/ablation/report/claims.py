"""The paper's claims, each held against this grid's rows: what was measured, and whether that shows the claim.

No verdict is written down beforehand. A claim is taken apart into comparisons of two groups of seeds, one of which the
claim says lies above the other. A comparison goes *as claimed* where every value of the one group lies above every
value of the other (*by less* where it falls short of a factor that the claim needs), *opposite* where every value lies
below, and stays *open* where the ranges overlap. A group of *one seed* has no range and decides nothing. A diverged
cell counts as above every number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from implicit_slate.ablation.report.formatting import capitalised, span
from implicit_slate.ablation.report.run import SPECTRAL_NORM, TRICKS, Cell, Run

SHOWN, IN_PART, NOT_SHOWN = "shown", "shown in part", "not shown"
NOT_SEPARABLE, NOT_MEASURED = "not separable here", "not measured"

GROWN = 2.0
"""The factor over training from which on a Jacobian norm is said to have grown; below it, to be stable."""

EXPLODED = 10.0
"""The factor between all unrolled and all implicit seeds from which on unrolled is said to explode."""


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


def judge(run: Run) -> list[Claim]:
    """Every claim of the paper on the tricks and the iterations, held against the finished cells of `run`."""
    loss = _of("val/cross_entropy")
    return [
        _claim(
            "The Jacobian norm of slot attention grows over training when unrolled, and stays stable when implicit.",
            _modes(run, "spectral norm in the last quarter of training, relative to the one before training:", growth),
            _doubling(run),
            _modes(run, "relative to the second quarter of training:", late_growth),
        ),
        _claim(
            "Implicit differentiation optimises better: a lower validation loss.",
            _modes(run, "final validation cross-entropy:", loss),
        ),
        _claim(
            "Without gradient clipping the Jacobian norm explodes when unrolled, and stays stable when implicit.",
            *_without(run, "clip", "largest spectral norm", _of("jacobian/spectral_norm_max"), EXPLODED),
        ),
        _claim(
            "Without gradient clipping the gradients explode when unrolled, and stay small when implicit.",
            *_without(run, "clip", "largest gradient norm", _of("grad_norm_max"), EXPLODED),
        ),
        _claim(
            "Without warmup training becomes unstable when unrolled, and seldom when implicit (paper: 1 of 3 seeds).",
            *_without(run, "warmup", "largest spectral norm", _of("jacobian/spectral_norm_max")),
        ),
        _claim(
            "Without learning rate decay the Jacobian norm grows when unrolled, and both modes reach a lower loss.",
            _removal(run, "decay", "unrolled", "final spectral norm", _of("jacobian/spectral_norm_final")),
            *(
                _removal(run, "decay", mode, "final cross-entropy", loss, lower=True)
                for mode in ("unrolled", "implicit")
            ),
        ),
        _claim(
            "Implicit differentiation needs the tricks less: removing one changes its loss less.",
            _sensitivity(run, [axis for axis in TRICKS if axis in run.setting_axes], "tricks' settings"),
        ),
        _claim(
            "Implicit differentiation is insensitive to the number of iterations; unrolled, more of them train worse.",
            _sensitivity(run, ["iterations"] if "iterations" in run.setting_axes else [], "numbers of iterations"),
            _more_iterations(run),
        ),
    ]


def chance_note(run: Run) -> str:
    """How often ranges over so few seeds separate although there is no difference: 1 in (a + b choose a)."""
    counts = [
        len([cell for cell in run.of(s, mode) if cell.finished])
        for s in run.settings
        for mode in ("unrolled", "implicit")
    ]
    seeds = min((count for count in counts if count), default=0)
    if seeds < 2:
        return "A setting with one seed has no spread to judge by, so it can show nothing."
    odds = math.comb(2 * seeds, seeds)
    return (
        f"With {seeds} seeds a group, pure chance puts every seed higher in 1 of {odds} settings; "
        "the more settings agree, the less it is chance."
    )


def growth(cell: Cell) -> float | None:
    """The median spectral norm over the last quarter of training, relative to the first measurement, at step 0.

    There the weights are random. Both modes move away from that, so this alone does not tell a steady growth from a
    rise in the first steps: see `late_growth`.
    """
    return _growth(cell, lambda progress: progress == 0)


def late_growth(cell: Cell) -> float | None:
    """The median spectral norm over the last quarter of training, relative to the one over the second quarter."""
    return _growth(cell, lambda progress: (progress >= 0.25) & (progress <= 0.5))


def _growth(cell: Cell, early: Callable[[np.ndarray], np.ndarray]) -> float | None:
    """From the steps that `early` chooses, by the part of training that is done (0 to 1), to the last quarter."""
    if cell.status == "diverged":
        return math.inf
    curve = cell.curves.get(SPECTRAL_NORM)
    if curve is None or len(curve.steps) < 4:
        return None
    progress = (curve.steps - curve.steps[0]) / (curve.steps[-1] - curve.steps[0])
    before, after = curve.values[early(progress)], curve.values[progress >= 0.75]
    return float(np.median(after) / np.median(before)) if len(before) and np.median(before) > 0 else None


def _of(key: str) -> Callable[[Cell], float | None]:
    return lambda cell: math.inf if cell.status == "diverged" else cell.number(key)


def _values(cells: Sequence[Cell], value: Callable[[Cell], float | None]) -> list[float]:
    found = [value(cell) for cell in cells if cell.finished]
    return [number for number in found if number is not None]


def _claim(claim: str, *parts: Part | None) -> Claim:
    """The verdict from all parts. Shown: every part holds in every setting; in part: some part holds in most settings;
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


def _compare(pairs: Sequence[Pair], what: str, above: str, below: str) -> Part | None:
    """The part that says `above` lies above `below`, with the ranges over all pairs and what happened in each."""
    pairs = [pair for pair in pairs if pair.above and pair.below]
    if not pairs:
        return None
    outcomes = [pair.outcome for pair in pairs]
    ranges = [span([value for pair in pairs for value in getattr(pair, group)]) for group in ("above", "below")]
    return Part(outcomes, f"{what} {ranges[0]} {above}, {ranges[1]} {below}; {_in_words(pairs, outcomes, above)}")


def _in_words(pairs: Sequence[Pair], outcomes: Sequence[str], above: str) -> str:
    words = {
        "as claimed": f"every seed is higher {above}",
        "by less": f"every seed is higher {above}, but not by {max(pair.factor for pair in pairs):g} times",
        "open": "the seeds overlap",
        "opposite": f"every seed is lower {above}",
        "one seed": "there is one seed only",
    }
    if len(set(outcomes)) == 1:
        where = f" in each of the {len(pairs)} settings" if len(pairs) > 1 else ""
        return f"{words[outcomes[0]]}{where}"
    said = []
    for outcome, word in words.items():
        where = [pair.setting for pair, found in zip(pairs, outcomes) if found == outcome]
        if where:
            names = f" ({'; '.join(where)})" if len(where) <= 3 else ""
            said.append(f"{word} in {len(where)} of {len(pairs)}{'' if said else ' settings'}{names}")
    return ", ".join(said)


def _modes(run: Run, what: str, value: Callable[[Cell], float | None]) -> Part | None:
    """Unrolled above implicit, in every setting."""
    pairs = [
        Pair(setting, _values(run.of(setting, "unrolled"), value), _values(run.of(setting, "implicit"), value))
        for setting in run.settings
    ]
    return _compare(pairs, what, "when unrolled", "when implicit")


def _doubling(run: Run) -> Part | None:
    """Every unrolled cell's norm has grown, and no implicit cell's."""
    factors = {mode: _values(run.of(gradient=mode), growth) for mode in ("unrolled", "implicit")}
    grown = {mode: sum(factor >= GROWN for factor in found) for mode, found in factors.items()}
    if not all(factors.values()):
        return None
    hits = (grown["unrolled"], len(factors["implicit"]) - grown["implicit"])
    outcomes = [
        "as claimed" if hit == len(found) else "opposite" if hit == 0 else "open"
        for hit, found in zip(hits, factors.values())
    ]
    counts = " and ".join(f"{grown[mode]} of {len(found)} {mode} cells" for mode, found in factors.items())
    return Part(outcomes, f"it is at least {GROWN:g} times the one before training in {counts}")


def _removal(
    run: Run, trick: str, mode: str, what: str, value: Callable[[Cell], float | None], lower: bool = False
) -> Part | None:
    """One mode without a trick lies above the same mode with it (`lower`: below), all other axes alike."""
    pairs = []
    for setting, group in _by_axis(run, trick, mode).items():
        off, on = _values(group.get("off", []), value), _values(group.get("on", []), value)
        pairs.append(Pair(setting, on, off) if lower else Pair(setting, off, on))
    names = (f"without {TRICKS[trick]}", f"with {TRICKS[trick]}")
    return _compare(pairs, f"{what}, {mode}:", *(names[::-1] if lower else names))


def _without(
    run: Run, trick: str, what: str, value: Callable[[Cell], float | None], factor: float = 1.0
) -> list[Part | None]:
    """Without a trick unrolled lies above implicit, `factor` times so, and it is the removal that lifts unrolled."""
    implicit = _by_axis(run, trick, "implicit")
    pairs = [
        Pair(s, _values(group.get("off", []), value), _values(implicit.get(s, {}).get("off", []), value), factor)
        for s, group in _by_axis(run, trick, "unrolled").items()
    ]
    modes = _compare(pairs, f"{what} without {TRICKS[trick]}:", "when unrolled", "when implicit")
    return [modes, _removal(run, trick, "unrolled", what, value)]


def _sensitivity(run: Run, axes: Sequence[str], name: str) -> Part | None:
    """The loss of one seed varies more over `axes` when unrolled: the ratio of its worst to its best value there."""
    ratios: dict[str, dict[str, list[float]]] = {}
    groups: dict[tuple, list[Cell]] = {}
    for cell in run.cells if axes else ():
        groups.setdefault((run.setting(cell, without=axes), cell.gradient, cell.seed), []).append(cell)
    loss = _of("val/cross_entropy")
    for (setting, mode, _), cells in groups.items():
        losses = _values(cells, loss)
        if len(losses) == len(cells) > 1:
            ratio = math.inf if max(losses) == math.inf else max(losses) / min(losses)
            ratios.setdefault(setting, {}).setdefault(mode, []).append(ratio)
    pairs = [Pair(setting, modes.get("unrolled", []), modes.get("implicit", [])) for setting, modes in ratios.items()]
    what = f"of each seed, the worst final cross-entropy over the {name} divided by the best:"
    return _compare(pairs, what, "when unrolled", "when implicit")


def _more_iterations(run: Run) -> Part | None:
    """Unrolled, the loss with the most iterations lies above that with the fewest."""
    groups = _by_axis(run, "iterations", "unrolled")
    counts = sorted({int(count) for group in groups.values() for count in group})
    if len(counts) < 2:
        return None
    loss, fewest, most = _of("val/cross_entropy"), str(counts[0]), str(counts[-1])
    pairs = [Pair(s, _values(g.get(most, []), loss), _values(g.get(fewest, []), loss)) for s, g in groups.items()]
    return _compare(pairs, "final cross-entropy, unrolled:", f"with n = {most}", f"with n = {fewest}")


def _by_axis(run: Run, axis: str, mode: str) -> dict[str, dict[str, list[Cell]]]:
    """The cells of one mode by setting without `axis`, then by value on it; empty if the grid does not vary it."""
    groups: dict[str, dict[str, list[Cell]]] = {}
    for cell in run.of(gradient=mode) if axis in run.setting_axes else ():
        values = groups.setdefault(run.setting(cell, without=(axis,)), {})
        values.setdefault(str(cell.axes.get(axis)), []).append(cell)
    return groups
