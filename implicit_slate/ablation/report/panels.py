"""The pictures that the cells drew, side by side: reconstructions and the masks of the slots."""

import re
from pathlib import Path

from implicit_slate.ablation.report.document import Block, Folded, Heading, Image, Images, Paragraph, link
from implicit_slate.ablation.report.run import Cell, Run
from implicit_slate.files import write_atomically


def panels(run: Run, folder: Path) -> list[Block]:
    """The chosen cells' panels, copied into `folder`, and links to all others."""
    pictured = [cell for setting in run.settings for cell in _by_seed(run, run.of(setting)) if cell.panels is not None]
    if not pictured:
        return []
    chosen = _chosen(run, pictured)
    images = []
    for cell in chosen:
        label, place = run.labels[cell.method], run.place(cell)
        words = place if len(chosen) > len(run.methods) else label
        name = f"panels_{re.sub(r'[^a-z0-9]+', '_', words.lower()).strip('_')}.png"
        write_atomically(folder / name, cell.panels.read_bytes())
        images.append(Image(name, f"Panels of {cell.name}", f"**{label}**{place.removeprefix(label)}."))
    blocks: list[Block] = [
        Heading("Reconstructions and slot masks"),
        Paragraph(
            "Each row is a validation image, the same in every picture: the truth, reconstructions, and the image "
            "where each slot attends, as the titles say. Whether masks are good is left to the eye."
        ),
        Images(images),
    ]
    if others := [link(run.place(cell), f"../cells/{cell.name}/panels.png") for cell in pictured if cell not in chosen]:
        blocks.append(Folded("The panels of the other cells", [Paragraph(" · ".join(others))]))
    return blocks


def _chosen(run: Run, pictured: list[Cell]) -> list[Cell]:
    """One cell of each method, of the first setting and seed; of a grid that only compares two modes, all of them."""
    if len(run.settings) == 1 and len(run.methods) <= 2:
        return _by_seed(run, pictured)
    first = {cell.method: cell for cell in reversed(pictured)}
    return [first[method] for method in run.methods if method in first]


def _by_seed(run: Run, cells: list[Cell]) -> list[Cell]:
    """The cells by seed, and those of one seed in the order of the methods."""
    return sorted(cells, key=lambda cell: (str(cell.seed).zfill(8), run.methods.index(cell.method)))
