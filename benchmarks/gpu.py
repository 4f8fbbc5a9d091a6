"""`python -m benchmarks.gpu`: the speed of SLATE at the paper's scale on this machine's GPU, in at most 8 minutes.

It needs no network, and these packages: torch, lightning, torchmetrics, safetensors, scipy, pillow, pyyaml, rich and
tensorboard (pytest for the tests). Measurements that fail, or for which there is no time, are listed and left out; the
others are still made. Without a GPU it runs at a tiny size, which shows only that it works.
"""

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.common import DEVICE, describe, make_console, make_table
from benchmarks.gpu_worker import Row, Scale, Section, Worker
from implicit_slate.files import write_atomically
from implicit_slate.provenance import revision

PAPER = Scale(
    dict(
        image_size=96, vocab_size=4096, d_model=192, num_slots=12, slot_size=192, num_iterations=7, num_blocks=8,
        num_heads=8,
    ), batch_size=50, rounds=5, steps=5, fit_steps=250, matrix_size=8192,
)  # fmt: skip
TINY = Scale(
    dict(
        image_size=16, vocab_size=32, d_model=16, num_slots=3, slot_size=16, slot_mlp_size=16, num_iterations=3,
        num_blocks=1, num_heads=2,
    ), batch_size=2, rounds=2, steps=2, fit_steps=10, matrix_size=128,
)  # fmt: skip
SECTIONS = tuple(
    Section(name, f"benchmarks.{parts}", seconds)
    for name, parts, seconds in (
        ("The card", "gpu_sections:card", 20),
        ("GPU tests", "gpu_sections:gpu_tests", 110),
        ("Training step", "gpu_sections:steps", 30),
        ("Training step as a CUDA graph", "gpu_sections:graph_steps", 15),
        ("Generation", "gpu_sections:generation", 25),
        ("Measurements", "gpu_lightning:measurements", 25),
        ("Lightning", "gpu_lightning:fit", 190),  # most of this and of the next is compiling
        ("Training step, compiled", "gpu_sections:compiled_steps", 30),  # last, because it uses any time left over
    )
)
STARTING = 30
"""Seconds for the first process to start and import, which is slow on a machine that has just booted."""
SMALL_SHARE = 1 / 3
"""Fraction of the sections' time on a machine without a GPU; far more than needed unless the machine is busy."""

NOTES = """\
A training step is forward, backward, clipping and Adam. `plain` is `benchmarks/plain_slate.py`, the others are ours;
float32 and bfloat16 are the precision of matrix products and convolutions (TF32: float32 with rounded factors). TFLOP/s
counts matrix products, convolutions and attention, of which a causal half is counted as a whole; GB/s what the
operations that are run one by one read and write, wherever it lies, so a fused step has none. Peak GB includes weights
and Adam's moments. Lightning: `Trainer.fit` on images in memory with GradientNorm and Divergence beside a
bare loop on one batch in the same precision, both compiled with CUDA graphs, as `fit` does by default. Measurements
of `SlotJacobian` take products whose number depends on the weights; these are random ones. Without a GPU, one compiled
step is traced, and no code made for it.
"""


def versions() -> dict[str, str | None]:
    """Versions of what affects the results; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "implicit-slate": revision()}
    for name in ("torch", "triton", "lightning", "torchmetrics"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    cudnn = torch.backends.cudnn.version()
    return found | {"cuda": torch.version.cuda, "cudnn": None if cudnn is None else str(cudnn)}


def measure(sections: Sequence[Section], scale: Scale, share: float, folder: Path, console: Console) -> dict:
    """The report of all sections, each given `share` of its seconds. It is written and printed after each section."""
    begin = time.monotonic()
    report: dict = {
        "card": describe(),
        "on_gpu": DEVICE == "cuda",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "sizes": dict(scale.sizes) | {"batch_size": scale.batch_size},
        "sections": {section.name: {} for section in sections},
    }
    end, worker = begin + STARTING, Worker()
    for section in sections:
        end += share * section.seconds
        console.print(f"{section.name} …", style="dim")
        rows = report["sections"][section.name]
        rows.update(worker.run(section, scale, end - time.monotonic()))
        console.print(*_tables(section.name, rows), sep="\n")
        report["seconds"] = round(time.monotonic() - begin, 1)
        write_atomically(folder / "gpu.json", json.dumps(report, indent=2) + "\n")
        write_atomically(folder / "gpu.md", markdown(report))
    worker.end()
    return report


def headline(report: dict) -> str:
    if report["on_gpu"]:
        return f"On {report['card']}."
    return (
        f"NO GPU WAS FOUND: these figures are of a tiny model on {report['card']}, and tell nothing but that it runs."
    )


def markdown(report: dict) -> str:
    found = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    sizes = ", ".join(f"{name} = {value}" for name, value in report["sizes"].items())
    blocks = [
        "# SLATE on a GPU", f"**{headline(report)}**", f"{report['date']}, {report['seconds']:.0f} s. {found}.",
        f"Sizes: {sizes}.", NOTES.strip(),
    ]  # fmt: skip
    for section, rows in report["sections"].items():
        lines, left_out = _lines(rows)
        blocks.append(f"## {section}")
        if lines:
            cells = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
        blocks.append("\n".join(f"- {line}" for line in left_out) if rows else "Not run yet.")
    return "\n\n".join(block for block in blocks if block) + "\n"


def _lines(rows: Mapping[str, Row]) -> tuple[list[list[str]], list[str]]:
    """(header and rows of the measurements, or [] if there are none; what was left out and why)."""
    measured = {name: row for name, row in rows.items() if not row.keys() & {"error", "skipped"}}
    left_out = [
        f"{name}: {kind}: {row[kind]}" for name, row in rows.items() for kind in ("error", "skipped") if kind in row
    ]
    headings = list(dict.fromkeys(heading for row in measured.values() for heading in row))
    lines = [[name, *(_shown(row.get(heading)) for heading in headings)] for name, row in measured.items()]
    return [["", *headings], *lines] if lines else [], left_out


def _shown(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _tables(title: str, rows: Mapping[str, Row]) -> list:
    lines, left_out = _lines(rows)
    if not lines:
        return [title, *left_out]
    table = make_table(title, lines[0][:1], lines[0][1:])
    for line in lines[1:]:
        table.add_row(*line)
    return [table, *left_out]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json, gpu.md (%(default)s)")
    folder = parser.parse_args(arguments).out
    console, on_gpu = make_console(), DEVICE == "cuda"
    report = measure(SECTIONS, PAPER if on_gpu else TINY, 1.0 if on_gpu else SMALL_SHARE, folder, console)
    console.print(headline(report), f"Written: {folder / 'gpu.md'} and {folder / 'gpu.json'}", sep="\n")


if __name__ == "__main__":
    main()
