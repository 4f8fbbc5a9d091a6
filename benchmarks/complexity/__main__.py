"""`python -m benchmarks.complexity`: time and memory of the refinement against n in every gradient mode."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.complexity import report
from benchmarks.complexity.figure import draw
from benchmarks.complexity.measure import Refinement, measure

SIZES = dict(num_slots=12, slot_size=192, num_inputs=256)
"""The paper's slots, and the tokens of a 64×64 image."""
BATCH_SIZES = {"cpu": 4, "cuda": 50}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.complexity", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/complexity"), help="folder to write to (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="times that everything is timed, in turn (%(default)s)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1 is needed")

    torch.set_num_threads(1)  # the operations are small: threads would mostly wait for one another
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console()
    if not console.is_terminal:
        console.width = 120  # the table unfolded
    refinement = Refinement(**SIZES, batch_size=BATCH_SIZES[device], device=device)
    cells = measure(refinement, rounds=options.rounds, track=lambda work: shown(work, console))

    where = report.describe(device)
    rows = report.summarize(cells)
    report.write(rows, refinement.description, where, options.out)
    draw(rows, f"{refinement.description}; {where}", options.out)
    n = [cell.n for cell in rows[0].cells]
    console.print(report.table(rows, f"n = {n[0]} → {n[-1]}. {refinement.description}\n{where}"))
    console.print(f"{options.out / 'complexity.md'} has the fits and what counts as O(1) and O(n).")


def shown(work: list[tuple], console: Console) -> Iterable[tuple]:
    """The work as it goes: a bar in a terminal, in a pipe a line a round."""
    if console.is_terminal:
        yield from track(work, "modes and n in turn", console=console)
        return
    rounds, last = work[-1][0], None
    for item in work:
        if item[0] != last:
            last = item[0]
            console.print("memory, and warming up" if last == 0 else f"round {last} of {rounds}")
        yield item


if __name__ == "__main__":
    main()
