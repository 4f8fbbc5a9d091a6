"""The paper's results table, FID and MSE on its three data sets, with this grid's numbers beside the paper's own."""

from collections.abc import Sequence
from typing import NamedTuple

from implicit_slate.ablation.report.comparison import NOT_MEASURED, Pair, compare, judged, values_of
from implicit_slate.ablation.report.document import Block, Heading, Paragraph, Table, Verdicts
from implicit_slate.ablation.report.evaluation_summary import score_of
from implicit_slate.ablation.report.evaluations import SPLITS, Evaluation
from implicit_slate.ablation.report.formatting import short
from implicit_slate.ablation.report.methods import IMPLICIT, UNROLLED, Method
from implicit_slate.ablation.report.run import Cell, Run
from implicit_slate.ablation.report.summary import Spread
from implicit_slate.scores import METRICS

PAPER = {
    "CLEVR-Mirror": {"fid": (22.19, 25.89), "mse": (10.66, 67.04)},
    "COCO": {"fid": (127.79, 147.48), "mse": (1659.15, 1821.75)},
    "ShapeStacks": {"fid": (34.2, 34.76), "mse": (108.67, 312.14)},
}
"""Implicit and vanilla, from Table 1 of the paper's earlier text, which is Table 3 of the later one."""

PAPER_SIZE, PAPER_STEPS = 96, 250_000
"""Side of the images in pixels, and steps of training."""

METHODS: tuple[Method, Method] = (IMPLICIT, UNROLLED)
"""In the order of the paper's columns; its vanilla SLATE is `unrolled`."""


class Row(NamedTuple):
    """The cells of one data set, all other axes alike."""

    data: str
    setting: str
    cells: dict[Method, list[Cell]]

    @property
    def name(self) -> str:
        return f"{self.data}, {self.setting}" if self.setting else self.data


def paper_results(run: Run, split: str) -> list[Block]:
    """The table and what it shows, where the grid has an axis of data sets or trains on one of the paper's."""
    rows = _rows(run, split)
    if "data" not in run.setting_axes and not any(row.cells for row in rows):
        return []
    header = ["data set", "images N"]
    for metric in ("FID", "MSE"):
        header += [f"{metric} {method.gradient}" for method in METHODS]
        header += [f"{metric} paper, {name}" for name in ("implicit", "vanilla")]
    table, reasons = [], []
    for row in rows:
        found = [evaluation for method in METHODS for evaluation in _evaluations(row, method, split)]
        reason = _why_not_beside(run, found)
        if reason:
            reasons.append(f"{row.name}: {reason}")
        images = " or ".join(f"{count:,}" for count in sorted({evaluation.images for evaluation in found})) or "–"
        values = [row.name, images]
        for key in ("fid", "mse"):
            values += [_ours(_evaluations(row, method, split), key) for method in METHODS]
            values += ["–" if reason else f"{value:,}" for value in PAPER[row.data][key]]
        table.append(values)
    claims = [claim for row in rows if (claim := _claim(row, split))]
    blocks: list[Block] = [Heading("The paper's results table"), Paragraph(_about(rows, split)), Table(header, table)]
    if reasons:
        blocks.append(Paragraph(f"The paper's numbers are left out where ours do not compare. {' '.join(reasons)}"))
    return [*blocks, Verdicts(claims)] if claims else blocks


def _rows(run: Run, split: str) -> list[Row]:
    """A row a data set of the paper and setting of the other axes; one without cells where the grid lacks that set."""
    rows = []
    for name in PAPER:
        groups: dict[str, dict[Method, list[Cell]]] = {}
        for cell in run.cells:
            if _data_set(run, cell, split) == name:
                others = [axis for axis in run.setting_axes if axis != "data"]
                setting = run.setting(cell, without=("data",)) if others else ""
                groups.setdefault(setting, {}).setdefault(cell.method, []).append(cell)
        rows += [Row(name, setting, cells) for setting, cells in groups.items()] or [Row(name, "", {})]
    return rows


def _data_set(run: Run, cell: Cell, split: str) -> str | None:
    """The data set of the paper that a cell was evaluated on; if it was not, the one that it is trained on."""
    trained_on = cell.axes.get("data") or run.shared_settings.get("data.class_path")
    name = cell.evaluations[split].data if split in cell.evaluations else str(trained_on)
    plain = name.rpartition(".")[2].lower().replace("_", "")
    return next((found for found in PAPER if found.lower().replace("-", "") == plain), None)


def _evaluations(row: Row, method: Method, split: str) -> list[Evaluation]:
    cells = row.cells.get(method, [])
    return [cell.evaluations[split] for cell in cells if cell.status == "complete" and split in cell.evaluations]


def _why_not_beside(run: Run, evaluations: Sequence[Evaluation]) -> str:
    """Why the paper's numbers do not compare to these evaluations; empty where they do, or where there are none."""
    sizes = {evaluation.image_size for evaluation in evaluations}
    if evaluations and "SLATE" not in str(run.shared_settings.get("model.class_path", "SLATE")):
        return "the paper's model is SLATE, this one is not."
    if not evaluations or sizes == {PAPER_SIZE}:
        return ""
    if None in sizes:
        return f"the evaluations do not tell the size of their images; the paper's are {PAPER_SIZE}×{PAPER_SIZE}."
    ours = " or ".join(f"{size}×{size}" for size in sorted(sizes))
    return f"images of {ours}, the paper's are {PAPER_SIZE}×{PAPER_SIZE}, and both FID and the summed MSE depend on it."


def _ours(evaluations: Sequence[Evaluation], key: str) -> str:
    """`22.19 ± 0.31` over the number of seeds, in as many digits as the paper gives."""
    values = [evaluation.metrics[key].mean for evaluation in evaluations if key in evaluation.metrics]
    if not values:
        return "–"
    found = Spread.of(values, geometric=False)
    deviation = "" if found.deviation is None or found.least == found.largest else f" ± {short(found.deviation, 2)}"
    return f"{short(found.mean, 4)}{deviation}\n{found.count} seed{'s' * (found.count > 1)}"


def _claim(row: Row, split: str) -> tuple[str, str, str] | None:
    """Whether implicit comes out below unrolled in every seed; None where nothing of it was measured."""
    parts = []
    for key in ("fid", "mse"):
        value = score_of(key, split)
        unrolled, implicit = (values_of(row.cells.get(method, []), value) for method in (UNROLLED, IMPLICIT))
        measured = any(key in found.metrics for method in METHODS for found in _evaluations(row, method, split))
        pairs = [Pair(row.name, unrolled, implicit)] if measured else []  # else only what diverged has a value
        parts.append(compare(pairs, f"{METRICS[key].name}:", "when unrolled", "when implicit"))
    claim = f"On {row.name}, implicit reaches a lower FID and a lower MSE than unrolled, as in the paper."
    found = judged(claim, *parts)
    return None if found.verdict == NOT_MEASURED else (found.claim, found.verdict, found.sentence)


def _about(rows: Sequence[Row], split: str) -> str:
    found = [evaluation for row in rows for method in METHODS for evaluation in _evaluations(row, method, split)]
    steps = sorted({evaluation.step for evaluation in found if evaluation.step is not None})
    text = (
        "FID and MSE of reconstructions through the slots; lower is better. Ours: mean ± standard deviation over "
        f"seeds, on N images of the {SPLITS[split]} split. The paper's: Table 1 of its earlier text, Table 3 of the "
        f"later, after {PAPER_STEPS:,} steps at {PAPER_SIZE}×{PAPER_SIZE}; its vanilla SLATE is `unrolled` here. "
        "**It does not state how many images its FID is of**, and FID depends on that. That its MSE is summed over an "
        "image's values is inferred from its size."
    )
    if steps and steps != [PAPER_STEPS]:
        text += f" **Ours were trained for {' or '.join(f'{step:,}' for step in steps)} steps.**"
    return text
