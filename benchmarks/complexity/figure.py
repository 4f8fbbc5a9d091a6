"""The figure: times and peak memory against n, both axes logarithmic, so that O(1) lies flat and O(n) rises."""

from collections import Counter
from pathlib import Path

from benchmarks.complexity.report import QUANTITIES, Row
from implicit_slate.ablation.report.drawing import COLORS, OTHER_COLORS, STYLE, make_log, save
from implicit_slate.ablation.report.methods import IMPLICIT, UNROLLED

FAMILY_COLORS = {
    "unrolled": COLORS[UNROLLED],
    "implicit": COLORS[IMPLICIT],
    **dict(zip(("truncated", "neumann", "phantom", "bilevel", "exact"), OTHER_COLORS)),
}
"""A family of modes has one colour; its members differ by their markers."""
MARKERS = "osD^v"


def draw(rows: list[Row], title: str, folder: Path) -> None:
    """`complexity.png` and `complexity.svg`."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    styles, members = [], Counter()
    for row in rows:
        family = row.gradient.partition("(")[0]
        styles.append({"color": FAMILY_COLORS[family], "marker": MARKERS[members[family]], "label": row.gradient})
        members[family] += 1
    shown = [quantity for quantity in QUANTITIES if quantity.title != "saved for backward"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        for ax, quantity in zip(figure.subplots(1, len(shown)), shown):
            for row, style in zip(rows, styles):
                n = [cell.n for cell in row.cells]
                ax.plot(n, [quantity.of(cell) for cell in row.cells], lw=1.6, ms=4.5, alpha=0.85, **style)
            make_log(ax)
            ax.set_xscale("log", base=2)
            ax.set_xticks(n, [str(value) for value in n])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xlabel("iterations n")
            ax.set_title(f"{quantity.title}, {quantity.unit}")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        save(figure, folder, "complexity")
