"""Mean and spread over seeds of every measurement, for each setting and method."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from implicit_slate.ablation.report.formatting import short
from implicit_slate.ablation.report.methods import Method
from implicit_slate.ablation.report.run import LOSS, Cell, Run

MEASUREMENTS = {
    "val/cross_entropy": "validation cross-entropy",
    "val/mse": "validation MSE of the dVAE",
    "val/loss": "validation loss",
    "val/ap_inf": "AP at any distance",
    "val/ap_1": "AP within distance 1",
    "val/ap_0.5": "AP within 0.5",
    "val/ap_0.25": "AP within 0.25",
    "val/ap_0.125": "AP within 0.125",
    "jacobian/spectral_norm_final": "last spectral norm",
    "jacobian/spectral_norm_max": "largest spectral norm",
    "grad_norm_max": "largest gradient norm",
    "residual_final": "last residual",
    "slots/attention_entropy_final": "last attention entropy",
    "slots/in_use_final": "last slots in use",
    "slots/information_final": "last information on slots",
    "slots/fg_ari_final": "last FG-ARI",
    "evaluations": "evaluations a step",
    "steps_per_second": "steps a second",
    "gradient/cosine": "cosine to the exact gradient",
    "gradient/norm_ratio": "norm relative to the exact gradient",
    "gradient/adjoint_residual": "residual of the reference's backward solve",
    "gradient/adjoint_products": "products of the reference's backward solve",
    "adjoint/products": "products of the backward solve",
    "adjoint/residual": "residual of the backward solve",
}
"""Keys of a row of `results.json`, and how the report calls them for SLATE."""

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
    """One setting and method: how many cells there are, how they ended, and the spread of each measurement."""

    setting: str
    method: Method
    cells: int
    finished: int
    diverged: int
    spreads: dict[str, Spread]


def measurements(run: Run) -> dict[str, str]:
    """`MEASUREMENTS`, with the loss as it is called where there is no dVAE, and no sum of losses beside its parts."""
    names = MEASUREMENTS | {run.loss: run.loss_name}
    return {key: name for key, name in names.items() if key != LOSS or run.loss == LOSS}


def summarise(run: Run) -> list[Line]:
    """A line for every setting and method that has cells; of more than two methods the one of the lowest loss first.

    A diverged cell has no final values: only complete cells count, save in the largest norms, which both kinds have.
    """
    geometric = {key: _is_wide(run, key) for key in measurements(run)}
    lines = []
    for setting in run.settings:
        groups = [(method, run.of(setting, method)) for method in run.methods]
        of_setting = [_line(setting, method, cells, geometric) for method, cells in groups if cells]
        if is_ranked(run):
            of_setting.sort(key=lambda line: line.spreads[run.loss].mean if run.loss in line.spreads else math.inf)
        lines += of_setting
    return lines


def is_ranked(run: Run) -> bool:
    """Whether the lines of a setting go by their loss: where there are more than two methods to compare."""
    return len(run.methods) > 2


def to_csv(run: Run, lines: Sequence[Line]) -> str:
    """The spreads as CSV, a row a setting, method and measurement."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [field.name for field in dataclasses.fields(Spread)]
    writer.writerow(["setting", *run.method_axes, "measurement", *fields])
    for line in lines:
        for key, spread in line.spreads.items():
            method = line.method[: len(run.method_axes)]
            writer.writerow([line.setting, *method, key, *dataclasses.astuple(spread)])
    return text.getvalue()


def _line(setting: str, method: Method, cells: Sequence[Cell], geometric: dict[str, bool]) -> Line:
    spreads = {}
    for key, wide in geometric.items():
        counted = [cell for cell in cells if cell.status == "complete" or (cell.finished and key.endswith("_max"))]
        if values := [number for cell in counted if (number := cell.number(key)) is not None]:
            spreads[key] = Spread.of(values, wide)
    diverged = sum(cell.status == "diverged" for cell in cells)
    return Line(setting, method, len(cells), sum(cell.finished for cell in cells), diverged, spreads)


def _is_wide(run: Run, key: str) -> bool:
    values = [cell.number(key) for cell in run.cells if cell.finished and cell.number(key) is not None]
    return bool(values) and min(values) > 0 and max(values) / min(values) >= WIDE
