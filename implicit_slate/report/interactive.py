"""The content of the page's interactive figures: the run's results as JSON, and the plotting library."""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from implicit_slate.measures import LOGGED, column_name
from implicit_slate.pictures import read_panels, strip
from implicit_slate.report.figures import SPREAD, method_styles, wants_log
from implicit_slate.report.numbers import capitalised, ratio, span
from implicit_slate.report.run import AXIS_WORDS, Run, damage_named

MAX_POINTS = 400
"""Largest number of points of a curve in the page; the CSV files have all points."""

PICTURE_BYTES = 2_500_000
"""Largest total size of the pictures of masks over training; in larger grids each cell shows fewer steps."""

Chart = dict[str, Any]
"""A figure of the page: `keys` are the tags or columns that it shows; `by` is the x axis: "step", "method" or an axis
of the grid; `panels` is "settings" for one panel per setting, or "keys" for one per key."""


def library() -> str:
    """plotly.js as base64, compressed to 40% of its size; the browser decompresses it."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def describe(run: Run, chart: Chart) -> str:
    """A description of a figure for readers who cannot see it: the range of each measure for each method."""
    said = []
    for key in chart["keys"]:
        curves = run.curves[run.curves["tag"] == key]
        values = curves.groupby("cell")["value"].last() if chart["by"] == "step" else run.finished[key].dropna()
        methods = run.cells["method"].reindex(values.index)
        ranges = [f"{span([*found])} {method}" for method, found in values.groupby(methods, observed=True)]
        said.append(f"{_name(key)}{' at the last step' * (chart['by'] == 'step')}: {', '.join(ranges)}.")
    return " ".join(said)


def page_data(run: Run, charts: Mapping[str, Chart]) -> str:
    """All data of the page, as JSON that is safe in a script element: `methods`, `settings`, `axes`, `cells`, `curves`
    by tag, `measures` (names and scales), `charts`, and `pictures`. Lists by cell are in the order of `cells`."""
    results = run.finished.reindex(run.cells.index)
    cells = [
        {
            "place": run.place(cell),
            **{key: str(row[key]) for key in ("method", "setting", "status")},
            "seed": str(row.get("seed", "")),
            "values": {axis: _number(row[axis]) for axis in run.setting_axes}
            | {key: _number(results.at[cell, key]) for key in _keys(charts, by="cell") if key in results},
        }
        for cell, row in run.cells.iterrows()
    ]
    tags = [tag for tag in _keys(charts, run.loss, "slots/fg_ari", by="step") if tag in run.logged]
    dashes = {"-": "solid", "-.": "dashdot"}  # other styles are matplotlib's patterns, in units of the line width
    found = {
        "methods": {
            name: {"color": style["color"], "dash": dashes.get(style["ls"]) or _pattern(*style["ls"][1])}
            for name, style in method_styles(run).items()
        },
        "settings": run.settings,
        "axes": AXIS_WORDS,
        "cells": cells,
        "curves": {tag: [_thinned(run.curve(cell, tag), tag) for cell in run.cells.index] for tag in tags},
        "measures": {key: {"name": _name(key), "log": _log(run, key)} for key in {*tags, *_keys(charts, by="cell")}},
        "charts": charts,
        "pictures": _pictures(run),
    }
    return json.dumps(found, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _pattern(dash: float, gap: float) -> str:
    return f"{3 * dash}px,{3 * gap}px"


def _keys(charts: Mapping[str, Chart], *more: str, by: str) -> list[str]:
    """The keys of the charts over training steps (`by="step"`), or of the others (`by="cell"`); then `more`."""
    shown = [key for chart in charts.values() if (chart["by"] == "step") == (by == "step") for key in chart["keys"]]
    return [*dict.fromkeys([*shown, *more])]


def _name(key: str) -> str:
    return capitalised(LOGGED[key].name if key in LOGGED else column_name(key))


def _log(run: Run, key: str) -> bool:
    return bool(wants_log(run, key) if key in run.logged else ratio(run.finished[key].dropna()) > SPREAD)


def _number(value: Any) -> Any:
    """A number rounded to five digits; None for a missing value; text unchanged."""
    if isinstance(value, str):
        return value
    return None if pd.isna(value) else float(f"{value:.5g}")


def _thinned(curve: pd.Series, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of a curve. A long curve is thinned to the largest (so that peaks are kept) or the last of every
    few points."""
    if len(curve) > MAX_POINTS:
        groups = curve.groupby(np.arange(len(curve)) * MAX_POINTS // len(curve))
        curve = curve[groups.idxmax() if "largest" in LOGGED[tag].summaries else groups.tail(1).index]
    return curve.index.astype(int).tolist(), [_number(value) for value in curve]


def _pictures(run: Run) -> list[dict[int, str]]:
    """Each cell's small pictures (`pictures.strip`) as base64, by step. A cell without these files, as of earlier
    versions, has only the last picture, made from its `panels.npz`, or none.

    Raises:
        UserError: a `panels.npz` is damaged.
    """
    found = []
    for cell in run.cells.index:
        files = sorted((run.folder(cell) / "panels").glob("*.webp"), key=lambda file: int(file.stem))
        pictures = {int(file.stem): file.read_bytes() for file in files}
        last = run.folder(cell) / "panels.npz"
        if not pictures and last.exists():
            with damage_named(last):
                pictures = {int(np.nan_to_num(run.cells.loc[cell, "step"])): strip(*read_panels(last))}
        found.append(pictures)
    size = sum(len(picture) for pictures in found for picture in pictures.values())
    share = min(1.0, PICTURE_BYTES / max(size, 1))
    kept = []
    for pictures in found:
        places = np.linspace(len(pictures) - 1, 0, max(1, int(share * len(pictures)))).round() if pictures else ()
        steps = [[*pictures][int(place)] for place in sorted({*places})]
        kept.append({step: base64.b64encode(pictures[step]).decode() for step in steps})
    return kept
