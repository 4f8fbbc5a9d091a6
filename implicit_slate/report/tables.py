"""The numbers in the tables: mean and spread over seeds by setting and method, the best method, and the paper's table.

Averages include only complete cells, except those of the largest norms and of the throughput, and only evaluations made
in the same way: with the same numbers of images, draws and iterations, and with masks enlarged in the same way.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from implicit_slate.measures import COLUMNS, EVALUATED, column_name
from implicit_slate.report.judging import NOT_MEASURED, Judgement, judge
from implicit_slate.report.numbers import ratio
from implicit_slate.report.run import IMPLICIT, PAPER, UNROLLED, Run

WIDE = 100
"""If the ratio of the largest to the smallest value is at least this, values are averaged geometrically; otherwise one
seed would dominate the mean."""

NAMES = {column: column_name(column) for column in COLUMNS} | {"steps_per_second": "steps per second"}
"""The summarised columns of the cells, and their names in the report."""

COMPARED = ["data", "image_size", "images", "masks", "applications"]
"""Columns that must be equal for evaluations to be comparable."""

TABLE = PAPER["results"]
"""The paper's results table."""


def spreads(frame: pd.DataFrame, by: Sequence[str], columns: Sequence[str], wide: Collection[str] = ()) -> pd.DataFrame:
    """Mean and spread of `columns` in each group of rows.

    Args:
        by: the columns that define the groups; categories are sorted in their own order.
        wide: those of `columns` that are averaged geometrically.

    Returns:
        One row per group and column that has a value: `by`, `measurement` (the column), `count`, `mean`, `deviation`
        (NaN for a single value; a factor if the mean is geometric), `least`, `largest`, `geometric`.
    """
    rows = []
    for group, members in frame.groupby(list(by), observed=True):
        for column in columns:
            values, geometric = members[column].dropna(), column in wide
            if len(values):
                inner = np.log(values) if geometric else values
                mean, deviation = (np.exp(x) if geometric else x for x in (inner.mean(), inner.std()))
                rows.append((*group, column, len(values), mean, deviation, values.min(), values.max(), geometric))
    header = ["measurement", "count", "mean", "deviation", "least", "largest", "geometric"]
    return pd.DataFrame(rows, columns=[*by, *header])


def _is_wide(values: pd.Series) -> bool:
    """Whether a column is averaged geometrically. A score never is: one of a seed at chance, as an FG-ARI of 0.004,
    would drag the mean of all others towards 0."""
    measure = EVALUATED.get(values.name) or COLUMNS.get(values.name, (None,))[0]
    is_score = measure is not None and measure.better == "higher"
    return not is_score and ratio(values.dropna()) >= WIDE


def result_spreads(run: Run) -> pd.DataFrame:
    """The spreads of all results by setting and method; diverged cells are included only in the largest norms
    and the throughput."""
    columns = [column for column in NAMES if column != "val/loss" or run.loss == "val/loss"]  # not next to its summands
    wide = [column for column in columns if _is_wide(run.finished[column])]
    return spreads(run.finished, ["setting", "method", *run.method_axes], columns, wide)


def evaluation_spreads(run: Run, split: str) -> pd.DataFrame:
    """The spreads over seeds of every metric, and of `<metric>_std`, its standard deviation over a cell's draws."""
    found = run.evaluated(split)
    by = ["setting", "method", *run.method_axes, "images", "draws", "masks", "applications"]
    columns = [*EVALUATED, *(f"{key}_std" for key in EVALUATED)]
    return spreads(found[found["status"] == "complete"].reindex(columns=[*by, *columns]), by, columns)


def paired_differences(run: Run, split: str | None) -> pd.DataFrame:
    """Implicit minus unrolled, paired by seed, for settings in which at least two seeds are complete in both modes.

    One row per setting and measurement, including comparable evaluations of `split`: the mean `difference` over seeds,
    and the ends `low` and `high` of its 95% bootstrap interval. If values vary over orders of magnitude, `is_ratio` is
    True and these are ratios.
    """
    cells = run.cells[run.cells["status"] == "complete"]
    cells = cells.assign(seed=cells.get("seed", 0))  # trials of a search have no seed
    columns = [run.loss, "slots/fg_ari_final", "grad_norm_max", "jacobian/spectral_norm_max"]
    if split:
        found = run.evaluated(split)
        found = found[(found["of"] == "slots") & ~found["setting"].isin(not_comparable(run, split))]
        cells = cells.join(found.set_index("cell")[[*EVALUATED]])
        columns += EVALUATED
    modes = [cells[cells["method"] == run.label(mode)].set_index(["setting", "seed"]) for mode in (IMPLICIT, UNROLLED)]
    rows = []
    for column in columns:
        is_ratio = _is_wide(cells[column])
        implicit, unrolled = ((np.log if is_ratio else np.positive)(mode[column].astype(float)) for mode in modes)
        for setting, values in (implicit - unrolled).dropna().groupby("setting", observed=True):
            if len(values) >= 2:
                interval = bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
                shown = np.array([values.mean(), *interval])
                rows.append((setting, column, len(values), *(np.exp(shown) if is_ratio else shown), is_ratio))
    return pd.DataFrame(rows, columns=["setting", "measurement", "seeds", "difference", "low", "high", "is_ratio"])


def by_place(spread: pd.DataFrame, *within: str) -> dict[tuple[str, str], dict[tuple, dict[str, Any]]]:
    """The rows of a spread, as nested mappings: by (setting, method), by the columns `within`, and by measurement."""
    found: dict[tuple[str, str], dict[tuple, dict[str, Any]]] = {}
    for (setting, method, *rest), rows in spread.groupby(["setting", "method", *within], sort=False):
        found.setdefault((setting, method), {})[tuple(rest)] = {row.measurement: row for row in rows.itertuples()}
    return found


def result_places(run: Run, spread: pd.DataFrame) -> list[tuple[str, str]]:
    """The settings and methods that have cells. With more than two methods, each setting's are sorted by mean loss."""
    places = list(run.cells.groupby(["setting", "method"], observed=True).groups)
    if len(run.methods) > 2:
        losses = spread[spread["measurement"] == run.loss].set_index(["setting", "method"])["mean"].to_dict()
        places.sort(key=lambda place: (run.settings.index(place[0]), losses.get(place, math.inf)))
    return places


def best_methods(run: Run, split: str, key: str) -> dict[str, str]:
    """For each setting the method whose seeds are all better than all seeds of the others, if there is one.

    Every method needs two seeds. A diverged cell counts as worse than every number. Settings in which evaluations
    differ in `COMPARED` have no best method.
    """
    found = run.evaluated(split)
    scores = found[found["of"] == "slots"].set_index("cell")[key] * (-1 if EVALUATED[key].better == "higher" else 1)
    cells = run.finished.assign(score=scores.reindex(run.finished.index))
    cells["score"] = cells["score"].mask(cells["status"] == "diverged", math.inf)
    groups = cells.dropna(subset="score").groupby(["setting", "method"], observed=True)["score"]
    best = {}
    for setting, ranges in groups.agg(["min", "max", "count"]).groupby("setting", observed=True):
        first = ranges["max"].idxmin()
        others = ranges["min"].drop(first)
        if len(others) and ranges["count"].min() >= 2 and ranges.loc[first, "max"] < others.min():
            best[setting] = first[1]
    return {setting: method for setting, method in best.items() if setting not in not_comparable(run, split)}


def not_comparable(run: Run, split: str) -> list[str]:
    """The settings whose cells were not all evaluated in the same way (`COMPARED`), as far as their files say."""
    groups = run.evaluated(split).groupby("setting", observed=True)
    return [setting for setting, found in groups if _differ(found)]


def _differ(evaluated: pd.DataFrame) -> bool:
    return len(evaluated[COMPARED].drop_duplicates()) > 1


def paper_table(run: Run, split: str) -> list[dict[str, Any]]:
    """FID and MSE on the paper's data sets, for comparison with the paper's numbers. Empty if the grid varies no data
    sets and trains on none of the paper's.

    Returns:
        One row per data set and setting of the other axes: `data`, `name` (of both), `evaluated` (the complete cells of
        each mode, with a column for each metric), `reason` why they cannot be compared with the paper's numbers (empty
        if they can), and `judgement` of the paper's claim (not measured if they cannot be compared with each other).
    """
    found = run.evaluated(split)
    found = found[found["of"] == "slots"].set_index("cell").reindex(run.cells.index)
    trained_on = run.cells["data"] if "data" in run.axes else run.shared_settings.get("data.class_path", "")
    data_sets = found["data"].fillna(trained_on).map(_paper_name)
    if "data" not in run.setting_axes and data_sets.isna().all():
        return []
    others = run.settings_without("data").replace("all cells", "")
    columns = ["images", "image_size", *(key for key in EVALUATED if key in found)]
    rows = []
    for data in TABLE["data"]:
        for setting in dict.fromkeys(others[data_sets == data]) or [""]:
            name = f"{data}, {setting}" if setting else data
            chosen = (data_sets == data) & (others == setting)
            part = replace(run, cells=run.cells[chosen].join(found[columns]))
            complete = part.cells[part.cells["status"] == "complete"].dropna(subset="images")
            ours = {mode.gradient: complete[complete["method"] == part.label(mode)] for mode in (IMPLICIT, UNROLLED)}
            claim = TABLE | {"claim": TABLE["claim"].format(data=name)}
            both = found.loc[pd.concat(ours.values()).index]
            if _differ(both):
                reason = "the evaluations do not all use the same images, masks and numbers of iterations."
                judgement = Judgement(claim["claim"], NOT_MEASURED, f"Not comparable: {reason}")
            else:
                reason, judgement = _why_not_beside(run, both["image_size"]), judge(part, claim)
            rows.append({"data": data, "name": name, "evaluated": ours, "reason": reason, "judgement": judgement})
    return rows


def _paper_name(data: object) -> str | None:
    """The paper's name of a data set, from the class of its data module or the value of an axis."""
    plain = str(data).rpartition(".")[2].lower().replace("_", "")
    return next((name for name in TABLE["data"] if name.lower().replace("-", "") == plain), None)


def _why_not_beside(run: Run, image_sizes: pd.Series) -> str:
    sizes, size = set(image_sizes.fillna(0).astype(int)), TABLE["image_size"]
    if sizes and "SLATE" not in run.shared_settings.get("model.class_path", "SLATE"):
        return "the paper's model is SLATE, but this one is not."
    if sizes <= {size}:
        return ""
    if 0 in sizes:
        return f"the evaluations do not record the size of their images; the paper's are {size}×{size}."
    ours = " or ".join(f"{found}×{found}" for found in sorted(sizes))
    return f"images of {ours}, the paper's are {size}×{size}, and both FID and the summed MSE depend on it."
