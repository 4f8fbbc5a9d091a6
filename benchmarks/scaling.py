"""`python -m benchmarks.scaling`: a figure of how the time of a training step grows with N, V, K, n and the batch size.

One quantity at a time is varied around a middle setting, in both gradient modes.
"""

import argparse
import csv
import io
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common import DEVICE, describe, make_console, shown, timed
from benchmarks.training_step import GRADIENTS, prepare
from implicit_slate.errors import positive
from implicit_slate.files import write_atomically
from implicit_slate.training.allocator import keep_freed_memory

MIDDLE = dict(
    image_size=48, vocab_size=1024, num_slots=6, num_iterations=7, batch_size=8,
    d_model=192, slot_size=192, num_blocks=4, num_heads=4,
)  # fmt: skip
SWEEPS = {
    "image_size": (24, 32, 48, 64, 96),
    "vocab_size": (256, 512, 1024, 2048, 4096),
    "num_slots": (2, 4, 6, 12, 24),
    "num_iterations": (1, 3, 7, 11, 15),
    "batch_size": (2, 4, 8, 16, 32),
}
LABELS = {
    "image_size": "N, tokens",
    "vocab_size": "V, codes",
    "num_slots": "K, slots",
    "num_iterations": "n, iterations",
    "batch_size": "images in a batch",
}

Row = tuple[str, str, int, float]
"""The varied quantity, the gradient mode, the quantity's value, and seconds of a step."""


def seconds_of(settings: dict, gradient: str, rounds: int) -> float:
    """Seconds of the fastest of `rounds` steps."""
    sizes = {name: value for name, value in settings.items() if name != "batch_size"}
    step = prepare("float32", sizes | {"gradient": gradient}, settings["batch_size"], DEVICE)
    step()
    return min(timed(step)[0] for _ in range(rounds))


def draw(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(13, 3), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(SWEEPS), sharey=True)
    for panel, quantity in zip(panels, SWEEPS, strict=True):
        for gradient, style in zip(GRADIENTS, ("o-", "s--"), strict=True):
            points = [(value, s) for what, mode, value, s in rows if (what, mode) == (quantity, gradient)]
            x = [(value // 4) ** 2 if quantity == "image_size" else value for value, _ in points]
            panel.plot(x, [s for _, s in points], style, label=gradient)
            panel.set(xscale="log", yscale="log", xlabel=LABELS[quantity])
            panel.set_xticks(x, [str(value) for value in x], minor=False)
            panel.minorticks_off()
        panel.grid(alpha=0.3)
    seconds = [second for *_, second in rows]
    ticks = [
        tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if min(seconds) / 2 < tick < 2 * max(seconds)
    ]
    panels[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0].set_ylabel("seconds a step")
    panels[0].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=3, help="timed steps of which the quickest counts")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="the folder of scaling.png and .csv")
    arguments, console = parser.parse_args(), make_console()
    keep_freed_memory()
    work = [(q, value, gradient) for q, values in SWEEPS.items() for value in values for gradient in GRADIENTS]
    rows: list[Row] = []
    for quantity, value, gradient in shown(work, "steps", console):
        rows.append((quantity, gradient, value, seconds_of(MIDDLE | {quantity: value}, gradient, arguments.rounds)))
    text, picture = io.StringIO(), io.BytesIO()
    csv.writer(text, lineterminator="\n").writerows([("varied", "gradient", "value", "seconds"), *rows])
    title = f"A training step around 48×48, V=1024, K=6, n=7, batch 8, float32, on {describe()}"
    draw(rows, title).savefig(picture, dpi=110)
    write_atomically(arguments.out / "scaling.csv", text.getvalue())
    write_atomically(arguments.out / "scaling.png", picture.getvalue())
    console.print(f"{arguments.out}/scaling.png, scaling.csv")


if __name__ == "__main__":
    main()
