"""Mean and spread over seeds of every measurement, for each setting and gradient mode."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from implicit_slate.ablation.report.formatting import short
from implicit_slate.ablation.report.run import Run

MEASUREMENTS = {
    "val/cross_entropy": "validation cross-entropy",
    "val/mse": "validation MSE of the dVAE",
    "jacobian/spectral_norm_final": "last spectral norm",
    "jacobian/spectral_norm_max": "largest spectral norm",
    "grad_norm_max": "largest gradient norm",
    "residual_final": "last residual",
    "evaluations": "evaluations a step",
    "steps_per_second": "steps a second",
}
"""Keys of a row of `results.json`, and how the report calls them."""

WIDE = 100
"""From this ratio of largest to least on, a measurement is averaged geometrically: else one seed would be the mean."""


@dataclass(frozen=True)
class Spread:
    """Some seeds' values of one measurement. A geometric mean goes with the geometric standard deviation, a factor."""

    count: int
    mean: float
    deviation: float | None
    least: float
    largest: float
    geometric: bool

    @classmethod
    def of(cls, values: list[float], geometric: bool) -> "Spread":
        inner = [math.log(value) for value in values] if geometric else values
        mean = statistics.fmean(inner)
        deviation = statistics.stdev(inner) if len(values) > 1 else None
        if geometric:
            mean, deviation = math.exp(mean), None if deviation is None else math.exp(deviation)
        return cls(len(values), mean, deviation, min(values), max(values), geometric)

    def __str__(self) -> str:
        """`78.3 ± 1.2` over `76.1 – 80.2`, or `31,000 ×÷ 5.2` where the mean is geometric; one number if all agree."""
        if self.deviation is None or self.least == self.largest:
            return short(self.mean)
        text = f"{short(self.mean)} {'×÷' if self.geometric else '±'} {short(self.deviation, digits=2)}"
        return f"{text}\n{short(self.least)} – {short(self.largest)}"


@dataclass(frozen=True)
class Line:
    """One setting and mode: how many cells there are, how they ended, and the spread of each measurement."""

    setting: str
    gradient: str
    cells: int
    finished: int
    diverged: int
    spreads: dict[str, Spread]


def summarise(run: Run) -> list[Line]:
    """A line for every setting and mode that has cells.

    A diverged cell has no final values: only complete cells count, save in the largest norms, which both kinds have.
    """
    geometric = {key: _is_wide(run, key) for key in MEASUREMENTS}
    lines = []
    for setting in run.settings:
        for mode in run.gradients:
            cells = run.of(setting, mode)
            if not cells:
                continue
            spreads = {}
            for key in MEASUREMENTS:
                counted = [
                    cell for cell in cells if cell.status == "complete" or (cell.finished and key.endswith("_max"))
                ]
                if values := [cell.number(key) for cell in counted if cell.number(key) is not None]:
                    spreads[key] = Spread.of(values, geometric[key])
            diverged = sum(cell.status == "diverged" for cell in cells)
            lines.append(Line(setting, mode, len(cells), sum(cell.finished for cell in cells), diverged, spreads))
    return lines


def to_csv(lines: Sequence[Line]) -> str:
    """The spreads as CSV, a row a setting, mode and measurement."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [field.name for field in dataclasses.fields(Spread)]
    writer.writerow(["setting", "gradient", "measurement", *fields])
    for line in lines:
        for key, spread in line.spreads.items():
            writer.writerow([line.setting, line.gradient, key, *dataclasses.astuple(spread)])
    return text.getvalue()


def _is_wide(run: Run, key: str) -> bool:
    values = [cell.number(key) for cell in run.cells if cell.finished and cell.number(key) is not None]
    return bool(values) and min(values) > 0 and max(values) / min(values) >= WIDE
