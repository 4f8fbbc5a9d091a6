"""What was evaluated, by setting and method: its spread over seeds, which method is best, the paper's results table.

Only complete cells are averaged, and only evaluations with the same numbers of images and draws. The dVAE's own
reconstruction does not go through the slots: it is the ceiling of what any method can reach, and has rows of its own.
"""

import math
from typing import NamedTuple

import pandas as pd

from implicit_slate.measures import EVALUATED
from implicit_slate.report.evaluations import SPLITS
from implicit_slate.report.judging import NOT_MEASURED, PAPER, Judgement, Pair, compare, verdict
from implicit_slate.report.numbers import counted, short
from implicit_slate.report.run import IMPLICIT, UNROLLED, Run
from implicit_slate.report.summary import of_cells, spreads, text_row

CEILING = "dVAE alone (ceiling)"

_BY = ["setting", "method", "images", "draws"]


class PaperTable(NamedTuple):
    """The paper's results table with this grid's numbers, why the paper's are left out, and what comes of it."""

    table: pd.DataFrame
    reasons: list[str]
    judgements: list[Judgement]


def splits_of(run: Run) -> list[str]:
    """The splits that some cell was evaluated on, in the order of `SPLITS`."""
    return [split for split in SPLITS if (run.evaluations["split"] == split).any()]


def evaluated(run: Run, split: str) -> pd.DataFrame:
    """The rows of `run.evaluations` of one split, with their cells' places; the method of the dVAE's is `CEILING`."""
    found = run.evaluations[run.evaluations["split"] == split]
    found = found.join(run.cells[["status", "setting", "method"]], on="cell")
    methods = found["method"].astype(str).mask(found["of"] == "dvae", CEILING)
    return found.assign(method=pd.Categorical(methods, [*run.methods, CEILING], ordered=True))


def evaluation_spreads(run: Run, split: str) -> pd.DataFrame:
    """The spreads of every metric over seeds; those of `<metric>_std` are of the deviation over a cell's draws."""
    found = evaluated(run, split)
    return spreads(found[found["status"] == "complete"], _BY, [*EVALUATED, *(f"{key}_std" for key in EVALUATED)])


def evaluation_table(run: Run, split: str, spread: pd.DataFrame) -> pd.DataFrame:
    """`evaluation_spreads` as text, the best in bold; methods without an evaluation are included."""
    keys = [key for key in EVALUATED if key in set(spread["measurement"])]
    names = {key: f"{_name(key)} {'↑' if EVALUATED[key].better == 'higher' else '↓'}" for key in keys}
    rows = []
    for setting in spread["setting"].unique():
        best = {name: best_method(run, split, setting, key) for key, name in names.items()}
        for method in [*run.methods, CEILING]:
            status = run.of(setting, method)["status"]
            here = spread[(spread["setting"] == setting) & (spread["method"] == method)]
            missing = [(("–", None), here)] if here.empty and len(status) else []
            for (images, _), group in [*here.groupby(["images", "draws"]), *missing]:
                count = int(group["count"].max()) if len(group) else 0
                row = {"setting": setting, "method": method, "evaluated": of_cells(status, count), "images N": images}
                texts = text_row(group, names)
                rows.append(row | {name: _bold(text) if best[name] == method else text for name, text in texts.items()})
    return pd.DataFrame(rows)


def over_draws_table(spread: pd.DataFrame) -> pd.DataFrame:
    """The deviation over a cell's draws of the initial slots, mean over seeds, as text; empty where all have one."""
    keys = [key for key in EVALUATED if f"{key}_std" in set(spread["measurement"])]
    rows = []
    for (setting, method, _, draws), group in spread.groupby(_BY, sort=False):
        means = group.set_index("measurement")["mean"]
        texts = {_name(key): short(means.get(f"{key}_std", math.nan), 2) for key in keys}
        if method != CEILING and keys:
            rows.append({"setting": setting, "method": method, "draws": draws, **texts})
    return pd.DataFrame(rows)


def best_method(run: Run, split: str, setting: str, key: str) -> str | None:
    """The method whose seeds are all better than all seeds of the others; None if there is none.

    It takes two seeds of each method. A diverged cell counts as worse than every number. Scores on different images do
    not compare, so nothing is best there.
    """
    scores = _scores(run, split, key)
    groups = {method: scores[scores.index.isin(run.of(setting, method).index)] for method in run.methods}
    groups = {method: found for method, found in groups.items() if len(found)}
    for method, found in groups.items() if setting not in not_comparable(run, split) else ():
        others = [Pair(setting, other, found) for name, other in groups.items() if name != method]
        if {pair.outcome() for pair in others} == {"as claimed"}:
            return method
    return None


def not_comparable(run: Run, split: str) -> list[str]:
    """The settings whose cells were not all evaluated on the same images, as far as their files tell."""
    groups = evaluated(run, split).groupby("setting", observed=True)[["data", "image_size", "images"]]
    return [setting for setting, found in groups if len(found.drop_duplicates()) > 1]


def paper_table(run: Run, split: str) -> PaperTable | None:
    """FID and MSE on the paper's data sets beside the paper's numbers; None where the grid has nothing to do with them:
    no axis of data sets, and none of the paper's to train on."""
    found = evaluated(run, split)
    found = found[found["of"] == "slots"].set_index("cell")
    trained_on = run.cells["data"] if "data" in run.axes else run.shared_settings.get("data.class_path", "")
    data_sets = found["data"].reindex(run.cells.index).fillna(trained_on).map(_paper_name)
    if "data" not in run.setting_axes and data_sets.isna().all():
        return None
    others = pd.Series(run.settings_without(("data",)) if set(run.setting_axes) - {"data"} else "", run.cells.index)
    rows, reasons, judgements = [], [], []
    for data, paper in PAPER["data"].items():
        for setting in dict.fromkeys(others[data_sets == data]) or [""]:
            name = f"{data}, {setting}" if setting else data
            cells = others.index[(data_sets == data) & (others == setting)]
            complete = found[found.index.isin(cells) & (found["status"] == "complete")]
            ours = {m: complete[complete["method"] == run.label(m)] for m in (IMPLICIT, UNROLLED)}
            both = pd.concat(ours.values())
            reason = _why_not_beside(run, both)
            reasons += [f"{name}: {reason}"] if reason else []
            row = {"data set": name, "images N": counted(both["images"])}
            for key in ("fid", "mse"):
                row |= {f"{_name(key)} {method.gradient}": _ours(used[key].dropna()) for method, used in ours.items()}
                row |= {f"{_name(key)} paper, {mode}": "–" if reason else f"{v:,}" for mode, v in paper[key].items()}
            rows.append(row)
            judgements.append(_judge(run, split, name, cells, both))
    judgements = [judgement for judgement in judgements if judgement.verdict != NOT_MEASURED]
    return PaperTable(pd.DataFrame(rows), reasons, judgements)


def _scores(run: Run, split: str, key: str) -> pd.Series:
    """A metric of each finished cell that has one, turned so that lower is better; infinity for a diverged one."""
    found = evaluated(run, split)
    found = found[found["of"] == "slots"].set_index("cell")[key].reindex(run.finished.index)
    found = -found if EVALUATED[key].better == "higher" else found
    return found.mask(run.finished["status"] == "diverged", math.inf).dropna()


def _judge(run: Run, split: str, name: str, cells: pd.Index, measured: pd.DataFrame) -> Judgement:
    """Whether implicit comes out below unrolled in every seed."""
    parts = []
    for key in ("fid", "mse"):
        scores = _scores(run, split, key)
        methods = run.cells.loc[scores.index, "method"].where(scores.index.isin(cells))
        pair = Pair(name, *(scores[methods == run.label(method)] for method in (UNROLLED, IMPLICIT)))
        pairs = [pair] if measured[key].notna().any() else []  # else only what diverged has a value
        parts.append(compare(pairs, f"{_name(key)}:", "when unrolled", "when implicit"))
    return verdict(f"On {name}, implicit reaches a lower FID and a lower MSE than unrolled, as in the paper.", parts)


def _bold(text: str) -> str:
    value, small, rest = text.partition("<small>")
    return f"**{value}**{small}{rest}"


def _name(key: str) -> str:
    measure = EVALUATED[key]
    return f"{measure.name} ({measure.unit})" if measure.unit else measure.name


def _paper_name(data: str) -> str | None:
    """The paper's name of a data set, from the class of its data module or from an axis."""
    plain = data.rpartition(".")[2].lower().replace("_", "")
    return next((name for name in PAPER["data"] if name.lower().replace("-", "") == plain), None)


def _why_not_beside(run: Run, evaluations: pd.DataFrame) -> str:
    """Why the paper's numbers do not compare to these evaluations; empty where they do, or where there are none."""
    sizes, size = set(evaluations["image_size"].fillna(0).astype(int)), PAPER["image_size"]
    if sizes and "SLATE" not in run.shared_settings.get("model.class_path", "SLATE"):
        return "the paper's model is SLATE, this one is not."
    if sizes <= {size}:
        return ""
    if 0 in sizes:
        return f"the evaluations do not tell the size of their images; the paper's are {size}×{size}."
    ours = " or ".join(f"{found}×{found}" for found in sorted(sizes))
    return f"images of {ours}, the paper's are {size}×{size}, and both FID and the summed MSE depend on it."


def _ours(values: pd.Series) -> str:
    """`22.19 ± 0.31` above the number of seeds, in as many digits as the paper gives."""
    if values.empty:
        return "–"
    deviation = f" ± {short(values.std(), 2)}" if values.nunique() > 1 else ""
    return f"{short(values.mean(), 4)}{deviation}<small>{len(values)} seed{'s' * (len(values) > 1)}</small>"
