"""`python -m benchmarks.complexity`: time and memory of the refinement as functions of n, in every gradient mode."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import linregress

from benchmarks.common import DEVICE, describe, make_console, make_table, timed
from benchmarks.refinement import Refinement
from implicit_slate.errors import positive
from implicit_slate.files import write_atomically

SIZES = dict(num_slots=12, slot_size=192, num_inputs=256)
"""The paper's slots, and the number of tokens of a 64×64 image."""
BATCH_SIZES = {"cpu": 4, "cuda": 50}
GRADIENTS = (
    "unrolled", "truncated(2)", "implicit", "neumann(3)", "phantom(3, 0.5)", "bilevel",
    "exact(broyden)", "exact(anderson)", "exact(gmres)", "exact(dense)",
)  # fmt: skip
ITERATIONS = (2, 4, 8, 16, 32)
"""From 2, the smallest n of `truncated(2)`."""
PATIENCE = 2.0
"""Seconds of timing for a mode at one n; `exact(dense)`, with its K·S products, is timed only once or twice."""
FLAT, LINEAR = 0.03, 0.1
"""Thresholds relative to the growth of n; see `fit`. From n = 2 to 32, growth by a factor of at most 1.45 is O(1), and
growth along a line by a factor of 2.5 or more is O(n). The factors are small because every quantity has a part that
does not depend on n, such as the gradients of the weights."""
LINE = 0.9
"""The smallest R² that counts as a line."""


@dataclass
class Cell:
    """One gradient mode at one n."""

    gradient: str
    n: int
    forward_seconds: list[float] = field(default_factory=list)
    """One value per round."""
    backward_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    saved_bytes: int = 0
    products: int = 0
    """Vector-Jacobian products in the backward solve of an `exact` mode. Depends on its convergence, not on n."""


def measure(
    refinement: Refinement, gradients: Sequence[str] = GRADIENTS, iterations: Sequence[int] = ITERATIONS,
    rounds: int = 7, say: Callable[[str], object] = print,
) -> list[Cell]:  # fmt: skip
    """Measures all modes at all n: first memory, which is also the warm-up; then, in every round, the time of each."""
    cells = [Cell(gradient, n) for gradient in gradients for n in iterations]
    say("memory, and warming up")
    for cell in cells:
        cell.saved_bytes = refinement.saved_bytes(cell.gradient, cell.n)
        cell.peak_bytes = refinement.peak_bytes(cell.gradient, cell.n)
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        for cell in cells:
            if sum(cell.forward_seconds + cell.backward_seconds) < PATIENCE:
                seconds, solution = timed(partial(refinement.forward, cell.gradient, cell.n), refinement.device)
                cell.forward_seconds.append(seconds)
                cell.backward_seconds.append(timed(partial(refinement.backward, solution), refinement.device)[0])
                cell.products = solution.adjoint.products if solution.adjoint else 0
    return cells


class Fit(NamedTuple):
    """Least-squares fits value ≈ constant + slope · n and, in the logarithms, value ≈ c · n^exponent."""

    constant: float
    slope: float
    r_squared: float
    exponent: float
    growth: float
    """The value at the largest n divided by the value at the smallest n."""
    order: str
    """`O(1)`, `O(n)`, or `unclear`."""


def fit(n: Sequence[int], values: Sequence[float]) -> Fit:
    """Fits positive values at two or more increasing n.

    The order follows from (growth of the value - 1) / (growth of n - 1), which is 0 for a constant and 1 for a value
    proportional to n: O(1) if at most `FLAT`; O(n) if at least `LINEAR` and R² is at least `LINE`; otherwise unclear.
    """
    line = linregress(n, values)
    growth, r_squared = values[-1] / values[0], float(line.rvalue**2)
    relative = (growth - 1) / (n[-1] / n[0] - 1)
    order = "O(1)" if relative <= FLAT else "O(n)" if relative >= LINEAR and r_squared >= LINE else "unclear"
    exponent = linregress(np.log(n), np.log(values)).slope
    return Fit(float(line.intercept), float(line.slope), r_squared, float(exponent), float(growth), order)


class Quantity(NamedTuple):
    """A quantity measured for each cell."""

    title: str
    unit: str
    of: Callable[[Cell], float]


FORWARD = Quantity("forward time", "ms", lambda cell: 1e3 * median(cell.forward_seconds))
BACKWARD = Quantity("backward time", "ms", lambda cell: 1e3 * median(cell.backward_seconds))
SAVED = Quantity("saved for backward", "MB", lambda cell: cell.saved_bytes / 1e6)
PEAK = Quantity("peak memory", "MB", lambda cell: cell.peak_bytes / 1e6)
SHOWN = (FORWARD, BACKWARD, SAVED, PEAK)
A_PRODUCT = Quantity("backward time a product", "ms", lambda cell: BACKWARD.of(cell) / max(cell.products, 1))
"""A mode without a backward solve counts as one product."""

NOTES = f"""\
**Forward:** n Picard iterations and the applications that the mode records. **Backward:** from a random cotangent of
the slots to the gradients of the weights, the keys and the values. Times are medians over rounds in which all modes and
all n are timed in turn, until a mode at one n has had {PATIENCE:g} s. **Saved for backward:** memory of the graph
between the two, each storage counted once, weights and inputs left out. **Peak memory:** the most that is allocated at
one time in forward and backward, gradients included, above what was there before.

**Orders.** With growth = (value at the largest n / value at the smallest - 1) / (largest n / smallest n - 1), a
quantity is O(1) if growth ≤ {FLAT}, O(n) if growth ≥ {LINEAR} and a line a + b·n has R² ≥ {LINE}, unclear otherwise.
The backward solve of an `exact` mode makes as many vector-Jacobian products as its convergence takes, up to its limit,
whatever n is: the order of its backward time is that of the time of one product. `orders.csv` has all fits: the line
a + b·n by least squares with its R², and the exponent p of c·n^p by least squares of the logarithms.
"""


class Row(NamedTuple):
    """One gradient mode over all n."""

    gradient: str
    cells: list[Cell]
    fits: dict[str, Fit]
    """The fit of each quantity, by its title; in the quantity's unit."""
    backward_ratio: float
    """Backward time divided by that of `unrolled` at the largest n: the median over rounds."""
    peak_ratio: float
    """Peak memory divided by that of `unrolled` at the largest n."""

    def order(self, quantity: Quantity) -> Fit:
        """The fit that decides the order. With a backward solve, backward time is judged by the time per product."""
        return self.fits[(A_PRODUCT if quantity is BACKWARD and self.cells[0].products else quantity).title]

    def texts(self) -> list[str]:
        """Table cells: mode; each quantity at smallest and largest n, its order and growth; ratios to `unrolled`."""
        few, many = min(cell.products for cell in self.cells), max(cell.products for cell in self.cells)
        name = self.gradient + (f"\n{few if few == many else f'{few} to {many}'} products" if many else "")
        ends = ([quantity.of(cell) for cell in (self.cells[0], self.cells[-1])] for quantity in SHOWN)
        values = [" → ".join(f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in pair) for pair in ends]
        orders = [f"{self.order(quantity).order} ×{self.order(quantity).growth:.2f}" for quantity in SHOWN]
        ratios = f"backward {self.backward_ratio:.2f}\npeak {self.peak_ratio:.2f}"
        return [name, *map("\n".join, zip(values, orders)), ratios]


def summarize(cells: list[Cell]) -> list[Row]:
    """One row per mode. `cells` must be grouped by mode with increasing n, and include `unrolled`."""
    groups = {gradient: list(group) for gradient, group in groupby(cells, key=lambda cell: cell.gradient)}
    plain = groups["unrolled"][-1]
    rows = []
    for gradient, group in groups.items():
        fits = {q.title: fit([c.n for c in group], [q.of(c) for c in group]) for q in (*SHOWN, A_PRODUCT)}
        ratio = median(ours / theirs for ours, theirs in zip(group[-1].backward_seconds, plain.backward_seconds))
        rows.append(Row(gradient, group, fits, ratio, group[-1].peak_bytes / plain.peak_bytes))
    return rows


def header(rows: list[Row]) -> list[str]:
    """The columns of `Row.texts`."""
    quantities = [f"{quantity.title}, {quantity.unit}" for quantity in SHOWN]
    return ["gradient", *quantities, f"÷ unrolled, n={rows[0].cells[-1].n}"]


def markdown(rows: list[Row], settings: str, device: str) -> str:
    names = header(rows)
    lines = [names, ["---"] * len(names), *(row.texts() for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |".replace("\n", "<br>") for line in lines)
    return f"""\
# Time and memory of the refinement against its iterations n

{settings}. On {device}.

Measured values at n = {rows[0].cells[0].n} → {rows[0].cells[-1].n}, their order in n and how many times they grew.

{table}

![Forward time, backward time and peak memory against n](complexity.png)

{NOTES}"""


def write(rows: list[Row], settings: str, device: str, folder: Path) -> None:
    """Writes `complexity.md`, `.png`, `.svg` and `.csv` (per mode and n), and `orders.csv` (per mode and quantity)."""
    write_atomically(folder / "complexity.md", markdown(rows, settings, device))
    values = [
        {"gradient": c.gradient, "n": c.n, "forward_seconds": median(c.forward_seconds),
         "backward_seconds": median(c.backward_seconds), "saved_bytes": c.saved_bytes, "peak_bytes": c.peak_bytes,
         "products": c.products, "rounds": len(c.forward_seconds), "device": device}
        for row in rows for c in row.cells
    ]  # fmt: skip
    orders = [
        {"gradient": row.gradient, "quantity": title} | fit._asdict() | {"device": device}
        for row in rows
        for title, fit in row.fits.items()
    ]
    for name, lines in {"complexity.csv": values, "orders.csv": orders}.items():
        write_atomically(folder / name, pd.DataFrame(lines).to_csv(index=False))
    _draw(rows, f"{settings}; {device}", folder)


def _draw(rows: list[Row], title: str, folder: Path) -> None:
    """Draws times and peak memory against n on log-log axes, so that O(1) is flat and O(n) rises."""
    from matplotlib.figure import Figure  # takes a second to import

    from implicit_slate.report.figures import save

    families = list(dict.fromkeys(row.gradient.partition("(")[0] for row in rows))  # one colour for all `exact` modes
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for ax, quantity in zip(figure.subplots(1, 3), (FORWARD, BACKWARD, PEAK)):
        for number, row in enumerate(rows):
            n, values = [cell.n for cell in row.cells], [quantity.of(cell) for cell in row.cells]
            style = f"C{families.index(row.gradient.partition('(')[0])}" + "osD^v"[number % 5] + "-"
            ax.loglog(n, values, style, lw=1.6, ms=4.5, alpha=0.85, label=row.gradient)
        ax.set_xticks(n, [str(value) for value in n])
        ax.set_xticks([], minor=True)
        ax.set(xlabel="iterations n", title=f"{quantity.title}, {quantity.unit}")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    save(figure, folder, "complexity")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.complexity", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/complexity"), help="folder to write to (%(default)s)")
    parser.add_argument("--rounds", type=positive, default=7, help="timings of each, in turn (%(default)s)")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # with small operations, threads would mostly wait for one another
    console = make_console()
    refinement = Refinement(**SIZES, batch_size=BATCH_SIZES[DEVICE], device=DEVICE)
    rows = summarize(measure(refinement, rounds=options.rounds, say=console.print))
    where, n = describe(), [cell.n for cell in rows[0].cells]
    write(rows, refinement.description, where, options.out)
    names, *numbers = header(rows)
    table = make_table(f"n = {n[0]} → {n[-1]}. {refinement.description}\n{where}", [names], numbers)
    for row in rows:
        table.add_row(*row.texts(), end_section=True)
    console.print(table)
    console.print(f"{options.out / 'complexity.md'} says what counts as O(1) and O(n); orders.csv has the fits.")


if __name__ == "__main__":
    main()
