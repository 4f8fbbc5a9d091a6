"""The table of orders, and the numbers behind it as Markdown and CSV."""

import csv
import io
import platform
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from rich.table import Table

from benchmarks.complexity.fit import FLAT, LINE, LINEAR, Fit, fit
from benchmarks.complexity.measure import PATIENCE, Cell
from implicit_slate.files import write_atomically


class Quantity(NamedTuple):
    """Something measured of a cell."""

    title: str
    unit: str
    of: Callable[[Cell], float]


QUANTITIES = (
    Quantity("forward time", "ms", lambda cell: 1e3 * cell.forward),
    Quantity("backward time", "ms", lambda cell: 1e3 * cell.backward),
    Quantity("saved for backward", "MB", lambda cell: cell.saved_bytes / 1e6),
    Quantity("peak memory", "MB", lambda cell: cell.peak_bytes / 1e6),
)
BACKWARD_A_PRODUCT = Quantity("backward time a product", "ms", lambda cell: 1e3 * cell.backward_a_product)

NOTES = f"""\
**Forward:** n Picard iterations and what the mode records. **Backward:** from a random cotangent of the slots to the
gradients of the weights, the keys and the values. Times are medians over rounds in which all modes and all n take their
turns, until a mode at one n has had {PATIENCE:g} s. **Saved for backward:** what the graph holds between the two, a
storage counted once, weights and inputs left out. **Peak memory:** the most that is allocated at one time in forward
and backward, gradients included, above what was there before.

**Orders.** With growth = (value at the largest n / value at the smallest - 1) / (largest n / smallest n - 1), a
quantity is O(1) if growth ≤ {FLAT}, O(n) if growth ≥ {LINEAR} and a line a + b·n has R² ≥ {LINE}, unclear otherwise.
The backward solve of an `exact` mode makes as many vector-Jacobian products as its convergence takes, or as it may at
most, whatever n is: the order of its backward time is that of the time a product.
"""


class Row(NamedTuple):
    """One gradient mode over all n."""

    gradient: str
    cells: list[Cell]
    fits: dict[str, Fit]
    """By the title of the quantity, in the quantity's unit."""
    backward_ratio: float
    """Backward time over that of `unrolled` at the largest n: the median over the rounds."""
    peak_ratio: float
    """Peak memory over that of `unrolled` at the largest n."""

    @property
    def has_solve(self) -> bool:
        return self.cells[0].products > 0

    @property
    def products(self) -> str:
        """Vector-Jacobian products of the backward solve, from the least to the most over n."""
        few, many = min(cell.products for cell in self.cells), max(cell.products for cell in self.cells)
        return "" if not self.has_solve else str(few) if few == many else f"{few} to {many}"

    def order(self, quantity: Quantity) -> Fit:
        by_product = quantity.title == "backward time" and self.has_solve
        return self.fits[BACKWARD_A_PRODUCT.title if by_product else quantity.title]

    def ends(self, quantity: Quantity) -> str:
        return f"{_number(quantity.of(self.cells[0]))} → {_number(quantity.of(self.cells[-1]))}"


def summarize(cells: list[Cell]) -> list[Row]:
    """A row for each mode. The cells of a mode stand together, n rising; `unrolled` is among the modes."""
    groups = {gradient: list(group) for gradient, group in groupby(cells, key=lambda cell: cell.gradient)}
    plain = groups["unrolled"][-1]
    rows = []
    for gradient, group in groups.items():
        n = [cell.n for cell in group]
        fits = {q.title: fit(n, [q.of(cell) for cell in group]) for q in (*QUANTITIES, BACKWARD_A_PRODUCT)}
        ratio = median(ours / theirs for ours, theirs in zip(group[-1].backward_seconds, plain.backward_seconds))
        rows.append(Row(gradient, group, fits, ratio, group[-1].peak_bytes / plain.peak_bytes))
    return rows


def table(rows: list[Row], title: str) -> Table:
    """As printed: a quantity at the smallest and at the largest n, under it its order and how many times it grew."""
    result = Table("gradient", title=title, title_justify="left", show_lines=True)
    for quantity in QUANTITIES:
        result.add_column(f"{quantity.title}, {quantity.unit}", justify="right")
    result.add_column(f"÷ unrolled, n={rows[0].cells[-1].n}", justify="right")
    for row in rows:
        result.add_row(
            row.gradient + (f"\n{row.products} products" if row.has_solve else ""),
            *(f"{row.ends(q)}\n{row.order(q).order} ×{row.order(q).growth:.2f}" for q in QUANTITIES),
            f"backward {row.backward_ratio:.2f}\npeak {row.peak_ratio:.2f}",
        )
    return result


def markdown(rows: list[Row], settings: str, device: str) -> str:
    first, last = rows[0].cells[0].n, rows[0].cells[-1].n
    orders = [
        [
            f"`{row.gradient}`",
            *(f"{row.order(q).order}" for q in QUANTITIES),
            *(row.ends(q) for q in QUANTITIES),
            row.products,
            f"{row.backward_ratio:.2f}",
            f"{row.peak_ratio:.2f}",
        ]
        for row in rows
    ]
    header = [
        "gradient", *(q.title for q in QUANTITIES), *(f"{q.title}, {q.unit}" for q in QUANTITIES), "products",
        "backward ÷ unrolled's", "peak ÷ unrolled's",
    ]  # fmt: skip
    fits = [
        [f"`{row.gradient}`", title, f"{f.constant:.4g} + {f.slope:.4g}·n", f"{f.r_squared:.3f}", f"{f.exponent:.2f}",
         f"{f.growth:.2f}"]
        for row in rows
        for title, f in row.fits.items()
        if row.has_solve or title != BACKWARD_A_PRODUCT.title
    ]  # fmt: skip
    return f"""\
# Time and memory of the refinement against its iterations n

{settings}. On {device}.

Orders in n, then the measured values at n = {first} → {last}; the ratios to `unrolled` are at n = {last}.

{_markdown_table(header, orders)}

![Forward time, backward time and peak memory against n](complexity.png)

{NOTES}
## Fits

The line a + b·n by least squares with its R², the exponent p of c·n^p by least squares of the logarithms, and the
value at n = {last} over that at n = {first}. Times in ms, memory in MB.

{_markdown_table(["gradient", "quantity", "a + b·n", "R²", "p", "growth"], fits)}
"""


def write(rows: list[Row], settings: str, device: str, folder: Path) -> None:
    """`complexity.md`, `complexity.csv` (a line a mode and n) and `orders.csv` (a line a mode and quantity)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "complexity.md", markdown(rows, settings, device))
    values = [
        [c.gradient, c.n, c.forward, c.backward, c.saved_bytes, c.peak_bytes, c.products, len(c.forward_seconds)]
        for row in rows
        for c in row.cells
    ]
    header = ["gradient", "n", "forward_seconds", "backward_seconds", "saved_bytes", "peak_bytes", "products", "rounds"]
    _write_csv(folder / "complexity.csv", [*header, "device"], [[*line, device] for line in values])
    orders = [[row.gradient, title, *f, device] for row in rows for title, f in row.fits.items()]
    _write_csv(folder / "orders.csv", ["gradient", "quantity", *Fit._fields, "device"], orders)


def describe(device: str) -> str:
    """The device's name, and the versions of what ran on it."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else platform.processor() or platform.machine()
        name += f", {torch.get_num_threads()} thread(s)"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue())
