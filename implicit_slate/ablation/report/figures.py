"""Every figure of a report, chosen by the axes that the grid varies and by what its cells have logged."""

from dataclasses import dataclass
from pathlib import Path

from implicit_slate.ablation.report.curve_figures import draw_curves, draw_overview
from implicit_slate.ablation.report.curve_kinds import CURVE_FIGURES
from implicit_slate.ablation.report.drawing import STYLE, Picture
from implicit_slate.ablation.report.result_figures import draw_methods, draw_sweep, numeric_axes
from implicit_slate.ablation.report.run import LOSSES, Run


@dataclass(frozen=True)
class Figures:
    """The figures of a run, each only where there are numbers for it."""

    overview: Picture | None
    curves: list[Picture]
    results: list[Picture]


def draw_all(run: Run, folder: Path) -> Figures:
    """Draw every figure that the run has numbers for into `folder`."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        tags = [tag for tag in CURVE_FIGURES if tag == run.loss or tag not in LOSSES]
        curves = [draw_curves(run, folder, tag) for tag in tags]
        results = [draw_methods(run, folder), *(draw_sweep(run, folder, axis) for axis in numeric_axes(run))]
        return Figures(draw_overview(run, folder), list(filter(None, curves)), list(filter(None, results)))
