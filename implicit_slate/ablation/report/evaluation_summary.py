"""Mean and spread over seeds of what was evaluated, for each setting and method: the rows behind the report's tables.

Only complete cells are averaged, as everywhere in the report. The dVAE's own reconstruction passes by the slots: it is
the ceiling of what any method can reach, and has lines of its own.
"""

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from implicit_slate.ablation.report.comparison import Pair, values_of
from implicit_slate.ablation.report.evaluations import SPLITS, Evaluation
from implicit_slate.ablation.report.methods import Method
from implicit_slate.ablation.report.run import Cell, Run
from implicit_slate.ablation.report.summary import Spread
from implicit_slate.scores import METRICS


@dataclass(frozen=True)
class EvaluationLine:
    """One setting and method, or the dVAE of a setting (`method` None), on one split."""

    setting: str
    method: Method | None
    cells: int
    evaluations: Sequence[Evaluation]
    spreads: dict[str, Spread]
    """Over seeds, of each metric's mean over draws."""
    over_draws: dict[str, float]
    """The standard deviation over draws of the initial slots, mean over seeds."""

    @property
    def images(self) -> list[int]:
        """How many images were evaluated; more than one number where cells differ."""
        return sorted({evaluation.images for evaluation in self.evaluations})

    @property
    def draws(self) -> list[int]:
        return sorted({evaluation.draws for evaluation in self.evaluations})


def splits_of(run: Run) -> list[str]:
    """The splits that some cell was evaluated on, in the order of `SPLITS`."""
    return [split for split in SPLITS if any(split in cell.evaluations for cell in run.cells)]


def score_of(key: str, split: str) -> Callable[[Cell], float | None]:
    """Reads a metric of a finished cell; a diverged one is worse than every number."""
    worst = -math.inf if METRICS[key].higher_is_better else math.inf

    def read(cell: Cell) -> float | None:
        if cell.status == "diverged":
            return worst
        score = cell.evaluations[split].metrics.get(key) if split in cell.evaluations else None
        return None if score is None else score.mean

    return read


def summarise_evaluations(run: Run, split: str) -> list[EvaluationLine]:
    """A line a setting and method, then the setting's dVAE; settings without an evaluation have none."""
    lines = []
    for setting in run.settings:
        groups = {method: run.of(setting, method) for method in run.methods}
        of_setting = [_line(setting, method, cells, split) for method, cells in groups.items() if cells]
        if any(line.evaluations for line in of_setting):
            lines += of_setting
            lines += _ceiling(setting, [e for line in of_setting for e in line.evaluations])
    return lines


def best_method(run: Run, split: str, setting: str, key: str) -> Method | None:
    """The method of which every seed is better than every seed of all others; None where no method is so.

    It takes two seeds of each method. A diverged cell counts as worse than every number. Scores on different images do
    not compare, so nothing is best there.
    """
    if not is_comparable(run, split, setting):
        return None
    sign = -1.0 if METRICS[key].higher_is_better else 1.0
    read = score_of(key, split)
    values = {method: [sign * v for v in values_of(run.of(setting, method), read)] for method in run.methods}
    for method, found in values.items():
        others = [Pair(setting, other, found) for name, other in values.items() if name != method and other]
        if found and others and all(pair.outcome == "as claimed" for pair in others):
            return method
    return None


def is_comparable(run: Run, split: str, setting: str) -> bool:
    """Whether all evaluations of a setting are of the same images, as far as their files tell."""
    found = [cell.evaluations[split] for cell in run.of(setting) if split in cell.evaluations]
    return len({(evaluation.data, evaluation.image_size, evaluation.images) for evaluation in found}) < 2


def to_csv(run: Run, lines_of: dict[str, Sequence[EvaluationLine]]) -> str:
    """All lines by split as CSV, a row a metric; the dVAE stands in the column `of`, and its row names no method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    spread = ("count", "mean", "deviation", "least", "largest")
    writer.writerow(
        ["split", "setting", *run.method_axes, "of", "images", "draws", "metric", *spread, "deviation_over_draws"]
    )
    for split, lines in lines_of.items():
        for line in lines:
            axes = [""] * len(run.method_axes) if line.method is None else line.method[: len(run.method_axes)]
            of = "dvae" if line.method is None else "slots"
            first = [split, line.setting, *axes, of, _joined(line.images), _joined(line.draws)]
            for key, found in line.spreads.items():
                writer.writerow([*first, key, *(getattr(found, name) for name in spread), line.over_draws.get(key)])
    return text.getvalue()


def _line(setting: str, method: Method, cells: Sequence[Cell], split: str) -> EvaluationLine:
    found = [cell.evaluations[split] for cell in cells if cell.status == "complete" and split in cell.evaluations]
    spreads, over_draws = {}, {}
    for key in METRICS:
        scores = [evaluation.metrics[key] for evaluation in found if key in evaluation.metrics]
        if scores:
            spreads[key] = Spread.of([score.mean for score in scores], geometric=False)
        if deviations := [score.over_draws for score in scores if score.over_draws is not None]:
            over_draws[key] = statistics.fmean(deviations)
    return EvaluationLine(setting, method, len(cells), found, spreads, over_draws)


def _ceiling(setting: str, evaluations: Sequence[Evaluation]) -> list[EvaluationLine]:
    """The dVAEs of all cells of a setting in one line: they learn nothing from the slots, whatever the method."""
    found = [evaluation for evaluation in evaluations if evaluation.ceiling]
    spreads = {
        key: Spread.of(values, geometric=False)
        for key in METRICS
        if (values := [evaluation.ceiling[key] for evaluation in found if key in evaluation.ceiling])
    }
    return [EvaluationLine(setting, None, len(found), found, spreads, {})] if found else []


def _joined(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
