"""The paper's claims, each held against this grid's rows: what was measured, and whether that shows the claim.

No verdict is written down beforehand; how one comes about is told in `comparison.py`. The claims on solvers are in
`solver_claims.py`.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from implicit_slate.ablation.report.comparison import (
    FOR_THE_EYE,
    NOT_MEASURED,
    Claim,
    Pair,
    Part,
    compare,
    judged,
    result_of,
    values_of,
)
from implicit_slate.ablation.report.methods import IMPLICIT, UNROLLED, Method
from implicit_slate.ablation.report.run import SPECTRAL_NORM, TRICKS, Cell, Run
from implicit_slate.ablation.report.solver_claims import judge_solvers

GROWN = 2.0
"""The factor over training from which on a Jacobian norm is said to have grown; below it, to be stable."""

EXPLODED = 10.0
"""The factor between all unrolled and all implicit seeds from which on unrolled is said to explode."""


def judge(run: Run) -> list[Claim]:
    """Every claim of the paper on how slots are trained, held against the finished cells of `run`."""
    loss = result_of(run.loss)
    return [
        judged(
            "The Jacobian norm of slot attention grows over training when unrolled, and stays stable when implicit.",
            _modes(run, "spectral norm in the last quarter of training, relative to the one before training:", growth),
            _doubling(run),
            _modes(run, "relative to the second quarter of training:", late_growth),
        ),
        judged(
            "Implicit differentiation optimises better: a lower validation loss.",
            _modes(run, f"final {run.loss_name}:", loss),
        ),
        judged(
            "Without gradient clipping the Jacobian norm explodes when unrolled, and stays stable when implicit.",
            *_without(run, "clip", "largest spectral norm", result_of("jacobian/spectral_norm_max"), EXPLODED),
        ),
        judged(
            "Without gradient clipping the gradients explode when unrolled, and stay small when implicit.",
            *_without(run, "clip", "largest gradient norm", result_of("grad_norm_max"), EXPLODED),
        ),
        judged(
            "Without warmup training becomes unstable when unrolled, and seldom when implicit (paper: 1 of 3 seeds).",
            *_without(run, "warmup", "largest spectral norm", result_of("jacobian/spectral_norm_max")),
        ),
        judged(
            "Without learning rate decay the Jacobian norm grows when unrolled, and both modes reach a lower loss.",
            _removal(run, "decay", UNROLLED, "final spectral norm", result_of("jacobian/spectral_norm_final")),
            *(
                _removal(run, "decay", mode, f"final {run.loss_name}", loss, lower=True)
                for mode in (UNROLLED, IMPLICIT)
            ),
        ),
        judged(
            "Implicit differentiation needs the tricks less: removing one changes its loss less.",
            _sensitivity(run, [axis for axis in TRICKS if axis in run.setting_axes], "tricks' settings"),
        ),
        judged(
            "Implicit differentiation is insensitive to the number of iterations; unrolled, more of them train worse.",
            _sensitivity(run, ["iterations"] if "iterations" in run.setting_axes else [], "numbers of iterations"),
            _more_iterations(run),
        ),
        *judge_solvers(run),
        _masks(run),
    ]


def chance_note(run: Run) -> str:
    """How often ranges over so few seeds separate although there is no difference: 1 in (a + b choose a)."""
    counts = [
        len([cell for cell in run.of(setting, method) if cell.finished])
        for setting in run.settings
        for method in run.methods
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


def _modes(run: Run, what: str, value: Callable[[Cell], float | None]) -> Part | None:
    """Unrolled above implicit, in every setting."""
    pairs = [
        Pair(setting, values_of(run.of(setting, UNROLLED), value), values_of(run.of(setting, IMPLICIT), value))
        for setting in run.settings
    ]
    return compare(pairs, what, "when unrolled", "when implicit")


def _doubling(run: Run) -> Part | None:
    """Every unrolled cell's norm has grown, and no implicit cell's."""
    factors = {mode: values_of(run.of(method=mode), growth) for mode in (UNROLLED, IMPLICIT)}
    grown = {mode: sum(factor >= GROWN for factor in found) for mode, found in factors.items()}
    if not all(factors.values()):
        return None
    hits = (grown[UNROLLED], len(factors[IMPLICIT]) - grown[IMPLICIT])
    outcomes = [
        "as claimed" if hit == len(found) else "opposite" if hit == 0 else "open"
        for hit, found in zip(hits, factors.values())
    ]
    counts = " and ".join(f"{grown[mode]} of {len(found)} {mode.gradient} cells" for mode, found in factors.items())
    return Part(outcomes, f"it is at least {GROWN:g} times the one before training in {counts}")


def _removal(
    run: Run, trick: str, mode: Method, what: str, value: Callable[[Cell], float | None], lower: bool = False
) -> Part | None:
    """One mode without a trick lies above the same mode with it (`lower`: below), all other axes alike."""
    pairs = []
    for setting, group in _by_axis(run, trick, mode).items():
        off, on = values_of(group.get("off", []), value), values_of(group.get("on", []), value)
        pairs.append(Pair(setting, on, off) if lower else Pair(setting, off, on))
    names = (f"without {TRICKS[trick]}", f"with {TRICKS[trick]}")
    return compare(pairs, f"{what}, {mode.gradient}:", *(names[::-1] if lower else names))


def _without(
    run: Run, trick: str, what: str, value: Callable[[Cell], float | None], factor: float = 1.0
) -> list[Part | None]:
    """Without a trick unrolled lies above implicit, `factor` times so, and it is the removal that lifts unrolled."""
    implicit = _by_axis(run, trick, IMPLICIT)
    pairs = [
        Pair(s, values_of(group.get("off", []), value), values_of(implicit.get(s, {}).get("off", []), value), factor)
        for s, group in _by_axis(run, trick, UNROLLED).items()
    ]
    modes = compare(pairs, f"{what} without {TRICKS[trick]}:", "when unrolled", "when implicit")
    return [modes, _removal(run, trick, UNROLLED, what, value)]


def _sensitivity(run: Run, axes: Sequence[str], name: str) -> Part | None:
    """The loss of one seed varies more over `axes` when unrolled: the ratio of its worst to its best value there."""
    ratios: dict[str, dict[Method, list[float]]] = {}
    groups: dict[tuple, list[Cell]] = {}
    for cell in run.cells if axes else ():
        groups.setdefault((run.setting(cell, without=axes), cell.method, cell.seed), []).append(cell)
    loss = result_of(run.loss)
    for (setting, mode, _), cells in groups.items():
        losses = values_of(cells, loss)
        if len(losses) == len(cells) > 1:
            ratio = math.inf if max(losses) == math.inf else max(losses) / min(losses)
            ratios.setdefault(setting, {}).setdefault(mode, []).append(ratio)
    pairs = [Pair(setting, modes.get(UNROLLED, []), modes.get(IMPLICIT, [])) for setting, modes in ratios.items()]
    what = f"of each seed, the worst final {run.loss_name} over the {name} divided by the best:"
    return compare(pairs, what, "when unrolled", "when implicit")


def _more_iterations(run: Run) -> Part | None:
    """Unrolled, the loss with the most iterations lies above that with the fewest."""
    groups = _by_axis(run, "iterations", UNROLLED)
    counts = sorted({int(count) for group in groups.values() for count in group})
    if len(counts) < 2:
        return None
    loss, fewest, most = result_of(run.loss), str(counts[0]), str(counts[-1])
    pairs = [Pair(s, values_of(g.get(most, []), loss), values_of(g.get(fewest, []), loss)) for s, g in groups.items()]
    return compare(pairs, f"final {run.loss_name}, unrolled:", f"with n = {most}", f"with n = {fewest}")


def _masks(run: Run) -> Claim:
    """No number measures whether masks are intuitive: the reader is the judge."""
    claim = "With a spatial broadcast decoder, implicit slot attention keeps intuitive masks."
    decoder = "SpatialBroadcast" in str(run.shared_settings.get("model.class_path"))
    pictured = {cell.method for cell in run.cells if cell.panels is not None}
    if not decoder or not {UNROLLED, IMPLICIT} <= pictured:
        return Claim(claim, NOT_MEASURED, "This grid has no panels of a spatial broadcast decoder in both modes.")
    return Claim(claim, FOR_THE_EYE, "No number here measures it: compare the masks of both modes in the panels below.")


def _by_axis(run: Run, axis: str, mode: Method) -> dict[str, dict[str, list[Cell]]]:
    """The cells of one mode by setting without `axis`, then by value on it; empty if the grid does not vary it."""
    groups: dict[str, dict[str, list[Cell]]] = {}
    for cell in run.of(method=mode) if axis in run.setting_axes else ():
        values = groups.setdefault(run.setting(cell, without=(axis,)), {})
        values.setdefault(str(cell.axes.get(axis)), []).append(cell)
    return groups
