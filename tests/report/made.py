"""Synthetic runs of grids: as folders in the format that a grid writes, and as frames."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
from PIL import Image

from implicit_slate.measures import COLUMNS
from implicit_slate.pictures import panels_npz, strip
from implicit_slate.report import write_report
from implicit_slate.report.run import Run

TRICKS = [
    {"clip": "on", "warmup": "on", "decay": "on"},
    {"clip": "off", "warmup": "on", "decay": "on"},
    {"clip": "on", "warmup": "off", "decay": "on"},
    {"clip": "on", "warmup": "on", "decay": "off"},
]

STEPS = (0, 10, 20, 30, 40)


class Grid:
    """A grid's folder under construction: `cell` adds a cell, `done` writes `grid.json` with all cells."""

    def __init__(self, path: Path, description: str = ""):
        self.path, self.description, self.cells = path, description, []
        path.mkdir(parents=True, exist_ok=True)

    def cell(self, gradient="implicit", seed=0, status="complete", steps=STEPS, loss=80.0, **options) -> Path:
        """Adds a cell: its folder with curves, a picture, a configuration and, if it has ended, its result.

        Args:
            options: `tag`, of the loss; `measures`, `config` and `error`, further content of the files; all others are
                axes.
        """
        tag, measures = options.pop("tag", "val/cross_entropy"), options.pop("measures", {})
        config = options.pop("config", {"class_path": "M", "init_args": {"rate": 0.005}})
        error = options.pop("error", None)
        axes = {"gradient": gradient, **options, "seed": seed}
        cell = ",".join(f"{axis}={value}" for axis, value in axes.items())
        self.cells.append({"cell": cell, "axes": axes})
        folder = self.path / "cells" / cell
        folder.mkdir(parents=True)
        if status == "waiting":
            return folder
        values = {"jacobian/spectral_norm": 1, "grad_norm": 50, tag: loss + 40, "residual": 0.1, "train/loss": 1}
        slope = {"jacobian/spectral_norm": 1 / 20, "grad_norm": 1, tag: -1}
        rows = [(t, step, value + slope.get(t, 0) * step) for t, value in values.items() for step in steps]
        pd.DataFrame(rows, columns=["tag", "step", "value"]).to_csv(folder / "curves.csv", index=False)
        Image.new("RGB", (60, 40), "blue").save(folder / "panels.png")
        config = {"model": {**config, "init_args": {**config.get("init_args", {}), "gradient": gradient}}}
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        found = dict.fromkeys(COLUMNS) | {
            "val/mse": 12.0, tag: loss, "jacobian/spectral_norm_final": 3.0, "jacobian/spectral_norm_max": 3.0,
            "grad_norm_max": 90.0, "residual_final": 0.1, "evaluations": 8.0,
        }  # fmt: skip
        result = {
            "cell": cell, "status": status, "axes": axes, "step": steps[-1] if steps else None,
            "measures": found | measures, "seconds": 4.0, "steps_per_second": 10.0, "git": "0123abc",
            "versions": {"torch": "2.15.0"}, "error": error,
        }  # fmt: skip
        if status != "running":
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    def done(self) -> Path:
        facts = {"grid": "demo", "description": self.description, "cells": self.cells, "configuration": {}}
        (self.path / "grid.json").write_text(json.dumps(facts))
        return self.path

    def report(self) -> str:
        """The report of all cells in Markdown."""
        write_report(self.done())
        return markdown(self.path)


def frames(cells: list[dict], curves: dict[str, dict[str, list[float]]] | None = None) -> Run:
    """A run made of frames only. `cells`: rows of status, axes and measures. `curves`: {cell number: {tag: values}}."""
    axes = [key for key in cells[0] if key in ("gradient", "solver", "clip", "warmup", "decay", "iterations", "seed")]
    table = pd.DataFrame(cells).rename_axis("cell")
    table.index = table.index.astype(str)
    for column in (*COLUMNS, "steps_per_second"):
        table[column] = table[column].astype(float) if column in table else np.nan
    points = [
        (cell, tag, step, value)
        for cell, tags in (curves or {}).items()
        for tag, values in tags.items()
        for step, value in enumerate(values)
    ]
    return Run(
        Path("x"), "x", "", axes, table, pd.DataFrame(points, columns=["cell", "tag", "step", "value"]),
        pd.DataFrame(columns=["cell", "split", "of"]),
    )  # fmt: skip


def write_pictures(folder: Path, steps: tuple[int, ...] = ()) -> None:
    """Writes the files of `callbacks.Panels` in a cell's folder: the last panels, and small pictures of some steps."""
    image, masks = np.random.default_rng(0).random((2, 3, 8, 8)), np.full((2, 4, 8, 8), 0.25)
    (folder / "panels.npz").write_bytes(panels_npz(image, image, masks, None))
    for step in steps:
        (folder / "panels").mkdir(exist_ok=True)
        (folder / "panels" / f"{step}.webp").write_bytes(strip(image, image * step / steps[-1], masks))


def write_evaluation(folder: Path, split="test", data="CLEVRMirror", image_size=96, picture=False, **facts):
    """Writes an evaluation of the cell in `folder`; `facts` are metrics by name, or other keys of the file."""
    folder = folder / "evaluation"
    folder.mkdir(exist_ok=True)
    metrics = dict.fromkeys(("mse", "psnr", "ssim", "fid", "kid", "cross_entropy", "fg_ari"))
    for key in metrics.keys() & facts.keys():
        mean = facts.pop(key)
        metrics[key] = {"mean": mean, "std": 0.125, "draws": [mean - 0.125, mean + 0.125]}
    content = {
        "checkpoint": "last.ckpt", "step": 40, "split": split, "images": 315, "draws": 2, "metrics": metrics,
        "data": {"class_path": f"data_modules.{data}", "init_args": {"image_size": image_size}}, "ceiling": None,
        "notes": [], "git": "0123abc", "versions": {}, "seconds": 1.0,
    }  # fmt: skip
    (folder / f"{split}.json").write_text(json.dumps(content | facts))
    if picture:
        Image.new("RGB", (20, 20), "blue").save(folder / f"{split}.png")


def markdown(run: Path) -> str:
    return (run / "report" / "report.md").read_text()


def all_links(run: Path) -> list[str]:
    """The targets of all links and pictures in both documents."""
    page = (run / "report" / "index.html").read_text()
    return [
        unquote(x) for x in re.findall(r'href="(?!data:)([^"]+)"', page) + re.findall(r"\]\(([^)]+)\)", markdown(run))
    ]


def table_under(text: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: {first cell: row}."""
    table = re.search(r"^\|.*?^(?!\|)", text.split(f"{heading}\n")[1], re.M | re.S)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    return {first: others for first, *others in rows}
