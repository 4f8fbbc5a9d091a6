"""The content of the page's interactive figures: the run's results as JSON, and the plotting library."""

import base64
import gzip
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from implicit_slate.measures import LOGGED, column_name
from implicit_slate.pictures import read_panels, strip
from implicit_slate.report.figures import method_styles, spreads_widely, wants_log
from implicit_slate.report.numbers import capitalised, span
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
    by tag, `names` of the keys, `charts` (with `log`, the keys whose axis is logarithmic), and `pictures`. Lists by
    cell are in the order of `cells`."""
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
        "curves": {tag: _thinned(run, tag) for tag in tags},
        "names": {key: _name(key) for key in {*tags, *_keys(charts, by="cell")}},
        "charts": {name: chart | {"log": _logarithmic(run, chart)} for name, chart in charts.items()},
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


def _logarithmic(run: Run, chart: Chart) -> list[str]:
    """The keys of a chart whose axis is logarithmic: a loss may spread widely over training, but not at its end."""
    return [key for key in chart["keys"] if (wants_log if chart["by"] == "step" else spreads_widely)(run, key)]


def _number(value: Any) -> Any:
    """A number rounded to five digits; None for a missing value; text unchanged."""
    if isinstance(value, str):
        return value
    return None if pd.isna(value) else float(f"{value:.5g}")


def _thinned(run: Run, tag: str) -> list[tuple[list[int], list[float]]]:
    """Steps and values of each cell's curve. Of a long curve only every few points are kept, with the largest value
    since the previous one (so that peaks are kept) or with their own. All cells keep the same steps, because the page
    compares them step by step."""
    steps = np.unique(run.curves.loc[run.curves["tag"] == tag, "step"])
    every = max(1, math.ceil((len(steps) - 1) / (MAX_POINTS - 1)))
    found = []
    for cell in run.cells.index:
        curve = run.curve(cell, tag)
        places = -(-np.searchsorted(steps, curve.index) // every)  # the first point stays alone
        groups = curve.groupby(places)
        values = groups.max() if "largest" in LOGGED[tag].summaries else groups.last()
        last = curve.index.to_series().groupby(places).last()
        found.append(([int(step) for step in last], [_number(value) for value in values]))
    return found


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
