"""Mean and spread over seeds, for each setting and method: numbers for CSV files, and the same as text for tables."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from implicit_slate.measures import COLUMNS, column_name
from implicit_slate.report.numbers import ratio, short
from implicit_slate.report.run import Run

WIDE = 100
"""From this ratio of largest to least on, values are averaged geometrically: else one seed would be the mean."""

NAMES = {column: column_name(column) for column in COLUMNS} | {"steps_per_second": "steps per second"}
"""The columns of the cells that are summed up, and what the report calls them."""


def spreads(frame: pd.DataFrame, by: Sequence[str], columns: Sequence[str], wide: Collection[str] = ()) -> pd.DataFrame:
    """Mean and spread of some columns in each group of rows.

    Args:
        by: the columns that make the groups; categories come in their order.
        wide: those of `columns` that are averaged geometrically.
    Returns:
        one row per group and column that has a value: `by`, `measurement` (the column), `count`, `mean`, `deviation`
        (NaN of one value; a factor where the mean is geometric), `least`, `largest`, `geometric`.
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


def spread_text(row: pd.Series) -> str:
    """A row of `spreads`: `78.3 ± 1.2` above `76.1 – 80.2`, `31,000 ×÷ 5.2` of a geometric mean; or one number."""
    if pd.isna(row["deviation"]) or row["least"] == row["largest"]:
        return short(row["mean"])
    text = f"{short(row['mean'])} {'×÷' if row['geometric'] else '±'} {short(row['deviation'], digits=2)}"
    return f"{text}<small>{short(row['least'])} – {short(row['largest'])}</small>"


def text_row(spread: pd.DataFrame, names: Mapping[str, str]) -> dict[str, str]:
    """The spreads of one group as text, by what `names` calls each measurement; `–` for one that has no values."""
    rows = spread.set_index("measurement")
    return {name: spread_text(rows.loc[key]) if key in rows.index else "–" for key, name in names.items()}


def of_cells(statuses: pd.Series, count: int) -> str:
    """How many of some cells are counted, and below it how many have diverged; the count alone if there are none."""
    diverged = (statuses == "diverged").sum()
    of = f" of {len(statuses)}" if len(statuses) else ""
    return f"{count}{of}" + (f"<small>{diverged} diverged</small>" if diverged else "")


def with_axes(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """`spreads` with the grid's own axes in the place of what the report calls a method."""
    axes = [run.methods.get(method, ("", ""))[: len(run.method_axes)] for method in table["method"]]
    axes = pd.DataFrame(axes, columns=run.method_axes)
    place = table.columns.get_loc("method")
    return pd.concat([table.iloc[:, :place], axes, table.iloc[:, place + 1 :]], axis=1)


def result_spreads(run: Run) -> pd.DataFrame:
    """The spreads of all results by setting and method.

    A diverged cell has no final values: it counts in the largest norms only.
    """
    columns = [column for column in NAMES if column != "val/loss" or run.loss == "val/loss"]  # no sum beside its parts
    found = run.finished.copy()
    final = [column for column in columns if column not in COLUMNS or COLUMNS[column][1] != "largest"]
    found.loc[found["status"] != "complete", final] = math.nan
    wide = [column for column in columns if ratio(run.finished[column].dropna()) >= WIDE]
    return spreads(found, ["setting", "method"], columns, wide)


def results_table(run: Run, spread: pd.DataFrame) -> pd.DataFrame:
    """`result_spreads` as text, one row per setting and method; of more than two methods the lowest loss first."""
    names = {key: name for key, name in NAMES.items() if key in set(spread["measurement"])}
    named = list(run.methods) != [method.gradient for method in run.methods.values()]  # else the gradient is the name
    rows = []
    for (setting, method), cells in run.cells.groupby(["setting", "method"], observed=True):
        here = spread[(spread["setting"] == setting) & (spread["method"] == method)]
        axes = dict(zip(run.method_axes, run.methods[method])) if named else {}
        finished = of_cells(cells["status"], len(cells.index.intersection(run.finished.index)))
        row = {"setting": setting, "method": method, **axes, "finished": finished, **text_row(here, names)}
        loss = here.loc[here["measurement"] == run.loss, "mean"].min()  # NaN if it has none
        rows.append((run.settings.index(setting), math.inf if math.isnan(loss) else loss, row))
    if len(run.methods) > 2:
        rows.sort(key=lambda row: row[:2])
    return pd.DataFrame([row for *_, row in rows])
