"""What the report says, section by section, as blocks of a document."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from implicit_slate.ablation.report.claims import chance_note, judge
from implicit_slate.ablation.report.comparison import NOT_MEASURED
from implicit_slate.ablation.report.document import (
    Block,
    Folded,
    Heading,
    Image,
    Images,
    Paragraph,
    Table,
    Verdicts,
    link,
)
from implicit_slate.ablation.report.drawing import MAX_METHODS, Picture
from implicit_slate.ablation.report.evaluation_section import evaluation
from implicit_slate.ablation.report.figures import Figures
from implicit_slate.ablation.report.formatting import capitalised, short
from implicit_slate.ablation.report.methods import BB, BN, IB
from implicit_slate.ablation.report.panels import panels
from implicit_slate.ablation.report.run import CROSS_ENTROPY, LOSS, MSE, Cell, Run
from implicit_slate.ablation.report.summary import Line, is_ranked, measurements

_MEASURED = (
    "The **spectral norm** is the largest singular value of the Jacobian of one slot attention step at the slots where "
    "the iterations end, mean over fixed validation images. The **gradient norm** is the L2 norm over slot attention's "
    "parameters before clipping. Largest and last refer to the steps of training. "
)

_LOSSES = {
    CROSS_ENTROPY: "The **cross-entropy** is that of the transformer, summed over an image's tokens, mean over the "
    "validation images.",
    MSE: "The **MSE** is that of the reconstruction, summed over an image's values, mean over the validation images.",
    LOSS: "The **validation loss** is the one that the model is trained for, mean over the validation images.",
}

_NAMES = (
    "The paper's **IN**, **IB**, **BN** and **BB** say how the fixed point is solved forward (I: iterate, B: Broyden) "
    "and how backward (N: one recorded application, called `implicit` here; B: Broyden, `exact(broyden, 7)` here). The "
    "vector-Jacobian products of a backward solve are not among the evaluations of f."
)


def contents(run: Run, figures: Figures, lines: Sequence[Line], folder: Path) -> list[Block]:
    """The whole report on `run`; the panels that it shows are copied into `folder`, beside the pictures."""
    blocks: list[Block] = []
    if run.description:
        blocks.append(Paragraph(_sentence(run.description)))
    blocks.append(Paragraph(_state(run)))
    if figures.overview:
        blocks.append(Images([_image(figures.overview)]))
    blocks.append(Heading("The paper's claims, and what this grid shows"))
    blocks += [Paragraph(_how_judged(run)), Paragraph(_MEASURED + _LOSSES[run.loss])]
    blocks += _claims(run)
    blocks.append(Heading("Over training"))
    curves = [_image(picture) for picture in figures.curves]
    in_pairs = len(run.settings) <= 4 and len(run.methods) <= MAX_METHODS  # more panels need the whole width
    blocks += [Images(curves)] if in_pairs else [Images([image]) for image in curves]
    if not curves:
        blocks.append(Paragraph("Nothing is logged yet."))
    blocks.append(Heading("Results"))
    blocks += [Images([_image(picture)]) for picture in figures.results]
    blocks += _results(run, lines)
    blocks += evaluation(run, folder)
    blocks += panels(run, folder)
    blocks += [Heading("Cells"), Folded(f"All {len(run.cells)} cells", [_cells(run)])]
    if settings := run.shared_settings:
        rows = [(f"`{key}`", f"`{value}`") for key, value in settings.items()]
        blocks.append(Folded("Settings that all cells share", [Table(("key", "value"), rows, labels=2)]))
    blocks.append(Paragraph(_origin(run)))
    return blocks


def _state(run: Run) -> str:
    counts = Counter(cell.status for cell in run.cells)
    states = ", ".join(f"{counts[status]} {status}" for status in sorted(counts, key=counts.get, reverse=True))
    text = f"{len(run.cells)} cells: {states}."
    unfinished = [cell for cell in run.cells if not cell.finished]
    if unfinished:
        text += " **This grid is not finished**: the claims and the table count the complete and diverged cells only."
    if diverged := [_at(run, cell) for cell in run.cells if cell.status == "diverged"]:
        text += f" Diverged (a loss or gradient was not finite): {'; '.join(diverged)}."
    if failed := [
        f"{_at(run, cell)} ({cell.row.get('error') or 'see its log'})" for cell in run.cells if cell.status == "failed"
    ]:
        text += f" **Failed**: {'; '.join(failed)}."
    return text


def _at(run: Run, cell: Cell) -> str:
    step = cell.number("step")
    return run.place(cell) if step is None else f"{run.place(cell)}, at step {int(step)}"


def _claims(run: Run) -> list[Block]:
    """Those that this grid measures, and folded away those that it does not."""
    claims = [(claim.claim, claim.verdict, claim.sentence) for claim in judge(run)]
    measured, others = ([c for c in claims if (c[1] != NOT_MEASURED) is there] for there in (True, False))
    blocks: list[Block] = [Verdicts(measured)] if measured else [Paragraph("None is measured here yet.")]
    if any(method in run.methods for method in (IB, BN, BB)):
        blocks.insert(0, Paragraph(_NAMES))
    if others:
        blocks.append(Folded(f"{len(others)} claims that this grid does not measure", [Verdicts(others)]))
    return blocks


def _sentence(text: str) -> str:
    """A description in YAML, as a paragraph."""
    text = capitalised(" ".join(text.split()))
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _how_judged(run: Run) -> str:
    return (
        "Each verdict is computed from the finished cells. Two groups of cells are compared in one setting at a time; "
        "“every seed is higher” says that the lowest seed of the one group is above the highest of the other. Where "
        f"the seeds overlap, this grid cannot tell. A diverged cell counts as above every number. {chance_note(run)} "
        "The ranges that are printed span all seeds and settings."
    )


def _image(picture: Picture) -> Image:
    links = " · ".join(link(kind.upper(), f"{picture.name}.{kind}") for kind in ("png", "svg", "csv"))
    return Image(f"{picture.name}.png", picture.title, f"**{picture.title}.** {picture.caption} {links}")


def _results(run: Run, lines: Sequence[Line]) -> list[Block]:
    names = measurements(run)
    keys = [key for key in names if any(key in line.spreads for line in lines)]
    geometric = [key for key in keys if any(line.spreads[key].geometric for line in lines if key in line.spreads)]
    named = run.labels != {method: method.gradient for method in run.methods}
    rows = []
    for line in lines:
        finished = f"{line.finished} of {line.cells}" + (f"\n{line.diverged} diverged" if line.diverged else "")
        method = [run.labels[line.method]] * named + list(line.method[: len(run.method_axes)])
        rows.append([line.setting, *method, finished, *(str(line.spreads.get(key, "–")) for key in keys)])
    note = "Mean ± standard deviation over seeds; below it the least and the largest seed."
    if geometric:
        wide = " and the ".join(names[key] for key in geometric)
        note += (
            f" For the {wide}, which varies over orders of magnitude, the mean is geometric, and ×÷ stands before the "
            "factor of one standard deviation."
        )
    note += " Diverged cells count in the largest norms (up to where they ended) and in nothing else."
    if is_ranked(run):
        note += f" The lowest mean {run.loss_name}{' of each setting' if len(run.settings) > 1 else ''} comes first."
    header = ["setting", *["method"] * named, *run.method_axes]
    table = Table([*header, "finished", *(names[key] for key in keys)], rows, labels=len(header))
    return [table, Paragraph(f"{note} {link('CSV', 'table.csv')}")]


def _cells(run: Run) -> Table:
    names = measurements(run)
    keys = ("step", run.loss, "jacobian/spectral_norm_max", "grad_norm_max", "seconds")
    rows = []
    for cell in run.cells:
        name = link(cell.name, f"../cells/{cell.name}/") if cell.folder.is_dir() else cell.name
        log = link(" log", f"../cells/{cell.name}/log.txt") if cell.status == "failed" else ""
        step, *numbers = (cell.number(key) for key in keys)
        rows.append([name, cell.status + log, "–" if step is None else str(int(step)), *map(short, numbers)])
    return Table(("cell", "status", "step", *(names.get(key, key) for key in keys[1:])), rows, labels=2)


def _origin(run: Run) -> str:
    revisions = sorted({str(cell.row["git"]) for cell in run.cells if cell.row.get("git")})
    versions = next((cell.row["versions"] for cell in run.cells if isinstance(cell.row.get("versions"), dict)), {})
    parts = ["Made from the result files of this grid by `implicit-slate report`."]
    if revisions:
        parts.append(f"Code: {', '.join(f'`{revision}`' for revision in revisions)}.")
    if versions:
        parts.append(f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.")
    return " ".join(parts)
