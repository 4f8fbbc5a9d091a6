"""The report's section on evaluated checkpoints: tables, what they mean, and links to each cell's files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from implicit_slate.ablation.report.document import Block, Folded, Heading, Paragraph, Table, link
from implicit_slate.ablation.report.evaluation_summary import (
    EvaluationLine,
    best_method,
    is_comparable,
    splits_of,
    summarise_evaluations,
    to_csv,
)
from implicit_slate.ablation.report.evaluations import SPLITS
from implicit_slate.ablation.report.formatting import capitalised, short
from implicit_slate.ablation.report.paper_table import paper_results
from implicit_slate.ablation.report.qualitative import qualitative
from implicit_slate.ablation.report.run import Run
from implicit_slate.files import write_atomically
from implicit_slate.scores import METRICS

CEILING = "dVAE alone (ceiling)"


def evaluation(run: Run, folder: Path) -> list[Block]:
    """The section, empty where no cell was evaluated; its numbers and pictures are written into `folder`."""
    splits = splits_of(run)
    if not splits:
        return []
    lines_of = {split: summarise_evaluations(run, split) for split in splits}
    write_atomically(folder / "evaluation.csv", to_csv(run, lines_of))
    blocks: list[Block] = paper_results(run, splits[0])
    blocks.append(Heading("Evaluation"))
    for split, lines in lines_of.items():
        blocks += _tables(run, split, lines)
    blocks += _notes(run)
    blocks += qualitative(run, splits[0], folder)
    evaluated = [cell for cell in run.cells if cell.evaluations]
    blocks.append(Folded(f"The files of {len(evaluated)} evaluated cells", [_files(run)]))
    return blocks


def _tables(run: Run, split: str, lines: Sequence[EvaluationLine]) -> list[Block]:
    keys = [key for key in METRICS if any(key in line.spreads for line in lines)]
    header = ["setting", "method", *run.method_axes[1:]]
    rows = []
    for line in lines:
        values = [_bold(str(line.spreads.get(key, "–")), _is_best(run, split, line, key)) for key in keys]
        rows.append([*_place(run, line), _evaluated(run, line), _numbers(line.images), *values])
    arrows = [f"{METRICS[key].name} {'↑' if METRICS[key].higher_is_better else '↓'}" for key in keys]
    table = Table([*header, "evaluated", "images N", *arrows], rows, labels=len(header))
    blocks: list[Block] = [Paragraph(_about(split, lines, keys)), table, Paragraph(_reading(run))]
    spreads = [[*_place(run, line), _numbers(line.draws)] + [short(line.over_draws.get(key), 2) for key in keys]
               for line in lines if line.over_draws]  # fmt: skip
    if spreads:
        blocks += [
            Paragraph(
                "**Spread over draws of the initial slots**: the standard deviation over the draws of one cell, mean "
                "over seeds. The spread over seeds above is another one."
            ),
            Table([*header, "draws", *(METRICS[key].name for key in keys)], spreads, labels=len(header)),
        ]
    return blocks


def _about(split: str, lines: Sequence[EvaluationLine], keys: Sequence[str]) -> str:
    images = _numbers(sorted({count for line in lines for count in line.images}))
    draws = sorted({count for line in lines if line.method is not None for count in line.draws})
    text = f"Reconstructions through the slots on the {SPLITS[split]} split, N = {images} images"
    if draws and draws[-1] > 1:
        text += f"; a cell's value is the mean over {_numbers(draws)} draws of the initial slots"
    text += ". ↓ lower is better, ↑ higher is better."
    if "mse" in keys:
        text += " **MSE** is summed over an image's channels and pixels at values in [0, 1], mean over the images."
    if "fid" in keys:
        text += " **FID** depends on N: it compares with no FID of another N."
    if any(line.method is None for line in lines):
        text += (
            f" “{CEILING}” is the dVAE's own reconstruction, which passes by the slots: about the best that a method "
            "can reach."
        )
    return text


def _reading(run: Run) -> str:
    text = "Mean ± standard deviation over seeds, of complete cells only; below it the least and the largest seed."
    if len(run.methods) > 1:
        text += " Bold: every seed of the method is better than every seed of all others; it takes two seeds each."
    return f"{text} {link('CSV', 'evaluation.csv')}"


def _notes(run: Run) -> list[Block]:
    """What the evaluations say of themselves, and what makes them differ from each other or from their cells."""
    found = [(cell, evaluation) for cell in run.cells for evaluation in cell.evaluations.values()]
    said = Counter(note.rstrip(".") for _, evaluation in found for note in set(evaluation.notes))
    notes = [note if count == len(found) else f"{note} ({count} of {len(found)})" for note, count in said.items()]
    for split in splits_of(run):
        if different := [setting for setting in run.settings if not is_comparable(run, split, setting)]:
            where = f" of {'; '.join(different)}" if run.setting_axes else ""
            notes.append(f"**Not the same images** in all cells{where}: they do not compare, and nothing is bold")
    if early := [
        f"{run.place(cell)} at step {evaluation.step:,} of {int(cell.number('step')):,}"
        for cell, evaluation in found
        if cell.status == "complete" and None not in (evaluation.step, cell.number("step"))
        and evaluation.step != cell.number("step")
    ]:  # fmt: skip
        notes.append(f"**Not the end of training**: {'; '.join(early)}")
    if uncounted := dict.fromkeys(run.place(cell) for cell, _ in found if cell.status != "complete"):
        notes.append(f"evaluated, but not counted because not complete: {'; '.join(uncounted)}")
    return [Paragraph(" ".join(f"{capitalised(note)}." for note in notes))] if notes else []


def _files(run: Run) -> Table:
    rows = []
    for cell in run.cells:
        for split, evaluation in cell.evaluations.items():
            folder = f"../cells/{cell.name}/evaluation"
            links = " · ".join(link(name, f"{folder}/{path.name}") for name, path in evaluation.files.items())
            step = "–" if evaluation.step is None else f"{evaluation.step:,}"
            rows.append([run.place(cell), SPLITS[split], links, step, f"{evaluation.images:,}", str(evaluation.draws)])
    return Table(("cell", "split", "files", "step", "images N", "draws"), rows, labels=3)


def _place(run: Run, line: EvaluationLine) -> list[str]:
    axes = [] if line.method is None else line.method[1 : len(run.method_axes)]
    label = CEILING if line.method is None else run.labels[line.method]
    return [line.setting, label, *(axes or ["–"] * (len(run.method_axes) - 1))]


def _evaluated(run: Run, line: EvaluationLine) -> str:
    if line.method is None:
        return str(line.cells)
    diverged = sum(cell.status == "diverged" for cell in run.of(line.setting, line.method))
    return f"{len(line.evaluations)} of {line.cells}" + (f"\n{diverged} diverged" if diverged else "")


def _is_best(run: Run, split: str, line: EvaluationLine, key: str) -> bool:
    return line.method is not None and best_method(run, split, line.setting, key) == line.method


def _bold(value: str, best: bool) -> str:
    first, *rest = value.split("\n")
    return "\n".join([f"**{first}**", *rest]) if best else value


def _numbers(counts: Sequence[int]) -> str:
    return " or ".join(f"{count:,}" for count in counts) or "–"
