"""What the report says, section by section, as blocks of a document."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from implicit_slate.ablation.report.claims import chance_note, judge
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
from implicit_slate.ablation.report.figures import Picture
from implicit_slate.ablation.report.formatting import capitalised, short
from implicit_slate.ablation.report.run import Cell, Run
from implicit_slate.ablation.report.summary import MEASUREMENTS, Line
from implicit_slate.files import write_atomically

_MEASURED = (
    "The **spectral norm** is the largest singular value of the Jacobian of one slot attention step at the slots where "
    "the iterations end, mean over fixed validation images. The **gradient norm** is the L2 norm over slot attention's "
    "parameters before clipping. Largest and last refer to the steps of training. The **cross-entropy** is that of "
    "the transformer, summed over an image's tokens, mean over the validation images."
)


def contents(run: Run, pictures: dict[str, Picture], lines: Sequence[Line], folder: Path) -> list[Block]:
    """The whole report on `run`; the panels that it shows are copied into `folder`, beside the pictures."""
    blocks: list[Block] = []
    if run.description:
        blocks.append(Paragraph(_sentence(run.description)))
    blocks.append(Paragraph(_state(run)))
    if "overview" in pictures:
        blocks.append(Images([_image(pictures["overview"])]))
    blocks.append(Heading("The paper's claims, and what this grid shows"))
    blocks += [Paragraph(_how_judged(run)), Paragraph(_MEASURED)]
    blocks.append(Verdicts([(claim.claim, claim.verdict, claim.sentence) for claim in judge(run)]))
    blocks.append(Heading("Over training"))
    curves = [_image(picture) for name, picture in pictures.items() if name != "overview"]
    in_pairs = len(run.settings) <= 4  # more panels need the whole width
    blocks += [Images(curves)] if in_pairs else [Images([image]) for image in curves]
    if not curves:
        blocks.append(Paragraph("Nothing is logged yet."))
    blocks += [Heading("Results"), *_results(lines)]
    blocks += _panels(run, folder)
    blocks += [Heading("Cells"), Folded(f"All {len(run.cells)} cells", [_cells(run)])]
    if settings := run.shared_settings():
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
    place = f"{cell.gradient}, {run.setting(cell)}, seed {cell.seed}"
    step = cell.number("step")
    return place if step is None else f"{place}, at step {int(step)}"


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


def _results(lines: Sequence[Line]) -> list[Block]:
    keys = [key for key in MEASUREMENTS if any(key in line.spreads for line in lines)]
    geometric = [key for key in keys if any(line.spreads[key].geometric for line in lines if key in line.spreads)]
    rows = []
    for line in lines:
        finished = f"{line.finished} of {line.cells}" + (f"\n{line.diverged} diverged" if line.diverged else "")
        rows.append([line.setting, line.gradient, finished, *(str(line.spreads.get(key, "–")) for key in keys)])
    note = "Mean ± standard deviation over seeds; below it the least and the largest seed."
    if geometric:
        names = " and the ".join(MEASUREMENTS[key] for key in geometric)
        note += (
            f" For the {names}, which varies over orders of magnitude, the mean is geometric, and ×÷ stands before the "
            "factor of one standard deviation."
        )
    note += " Diverged cells count in the largest norms (up to where they ended) and in nothing else."
    header = ["setting", "gradient", "finished", *(MEASUREMENTS[key] for key in keys)]
    return [Table(header, rows, labels=2), Paragraph(f"{note} {link('CSV', 'table.csv')}")]


def _panels(run: Run, folder: Path) -> list[Block]:
    """The panels of the first seed of the first setting of each mode, beside each other; links to all others."""
    pictured = {cell.name: cell for cell in run.cells if (cell.folder / "panels.png").exists()}
    if not pictured:
        return []
    chosen: dict[str, Cell] = {}
    for setting in run.settings:
        for cell in sorted(run.of(setting), key=lambda cell: (str(cell.seed).zfill(8), cell.name)):
            if cell.name in pictured:
                chosen.setdefault(cell.gradient, cell)
    images = []
    for mode in run.gradients:
        if cell := chosen.get(mode):
            name = f"panels_{re.sub(r'[^a-z0-9]+', '_', mode.lower()).strip('_')}.png"
            write_atomically(folder / name, (cell.folder / "panels.png").read_bytes())
            images.append(Image(name, f"Panels of {cell.name}", f"**{mode}**, {run.setting(cell)}, seed {cell.seed}."))
    first = {cell.name for cell in chosen.values()}
    others = [
        link(f"{cell.gradient}, {run.setting(cell)}, seed {cell.seed}", f"../cells/{name}/panels.png")
        for name, cell in pictured.items()
        if name not in first
    ]
    blocks: list[Block] = [
        Heading("Reconstructions and slot masks"),
        Paragraph(
            "Each row is a validation image: the truth, the dVAE's reconstruction, the reconstruction through the "
            "slots, and the image where each slot attends."
        ),
        Images(images),
    ]
    if others:
        blocks.append(Folded("The panels of the other cells", [Paragraph(" · ".join(others))]))
    return blocks


def _cells(run: Run) -> Table:
    keys = ("step", "val/cross_entropy", "jacobian/spectral_norm_max", "grad_norm_max", "seconds")
    rows = []
    for cell in run.cells:
        name = link(cell.name, f"../cells/{cell.name}/") if cell.folder.is_dir() else cell.name
        log = link(" log", f"../cells/{cell.name}/log.txt") if cell.status == "failed" else ""
        step, *numbers = (cell.number(key) for key in keys)
        rows.append([name, cell.status + log, "–" if step is None else str(int(step)), *map(short, numbers)])
    return Table(("cell", "status", "step", *(MEASUREMENTS.get(key, key) for key in keys[1:])), rows, labels=2)


def _origin(run: Run) -> str:
    revisions = sorted({str(cell.row["git"]) for cell in run.cells if cell.row.get("git")})
    versions = next((cell.row["versions"] for cell in run.cells if isinstance(cell.row.get("versions"), dict)), {})
    parts = ["Made from the result files of this grid by `implicit-slate report`."]
    if revisions:
        parts.append(f"Code: {', '.join(f'`{revision}`' for revision in revisions)}.")
    if versions:
        parts.append(f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.")
    return " ".join(parts)
