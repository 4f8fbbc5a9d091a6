"""The figure: times and peak memory against n, both axes logarithmic, so that O(1) lies flat and O(n) rises."""

from pathlib import Path

from benchmarks.complexity.report import QUANTITIES, Row
from implicit_slate.ablation.report import figures

FAMILY_COLORS = figures.COLORS | dict(
    zip(("truncated", "neumann", "phantom", "bilevel", "exact"), figures.OTHER_COLORS, strict=False)
)
"""A family of modes has one colour; the members of `exact` differ by their markers."""
MARKERS = "osD^v"


def draw(rows: list[Row], title: str, folder: Path) -> None:
    """`complexity.png` and `complexity.svg`."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    with matplotlib.rc_context(figures._STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        shown = [quantity for quantity in QUANTITIES if quantity.title != "saved for backward"]
        seen: dict[str, int] = {}
        styles = []
        for row in rows:
            family = row.gradient.partition("(")[0]
            seen[family] = seen.get(family, -1) + 1
            styles.append({"color": FAMILY_COLORS[family], "marker": MARKERS[seen[family]], "label": row.gradient})
        for ax, quantity in zip(figure.subplots(1, len(shown)), shown):
            for row, style in zip(rows, styles):
                n = [cell.n for cell in row.cells]
                ax.plot(n, [quantity.of(cell) for cell in row.cells], lw=1.6, ms=4.5, alpha=0.85, **style)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(n, [str(value) for value in n])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(figures._tick))
            ax.set_xlabel("iterations n")
            ax.set_title(f"{quantity.title}, {quantity.unit}")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        figures._save(figure, folder, "complexity")
