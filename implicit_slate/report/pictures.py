"""Which pictures of reconstructions and slot masks the report shows; training and `evaluate` have left them."""

import numpy as np
from PIL import Image

from implicit_slate.measures import LOGGED, column_name
from implicit_slate.pictures import Group, compare, read_panels
from implicit_slate.report.figures import method_styles
from implicit_slate.report.numbers import short
from implicit_slate.report.run import Run, damage_named
from implicit_slate.report.tables import not_comparable


def comparison(run: Run) -> Image.Image | None:
    """The same validation images as two methods see them, side by side: of the first setting in which two have a
    complete cell that left `panels.npz`. None if there is no such setting, or if the images are not the same.

    Raises:
        UserError: one of these files is damaged.
    """
    cells = next((cells for cells in _side_by_side(run, "panels.npz").values() if len(cells) == 2), [])
    truths, groups = [], []
    for cell in cells:
        path, row = run.folder(cell) / "panels.npz", run.cells.loc[cell]
        with damage_named(path):
            truth, reconstruction, masks = read_panels(path)
        numbers = {LOGGED["slots/fg_ari"].name: row["slots/fg_ari_final"], column_name(run.loss): row[run.loss]}
        lines = [
            run.place(cell).removeprefix(f"{row['method']}, "),
            "  |  ".join(f"{name} {short(value)}" for name, value in numbers.items() if np.isfinite(value)),
        ]
        groups.append(Group(row["method"], lines, method_styles(run)[row["method"]]["color"], reconstruction, masks))
        truths.append(truth)
    return compare(truths[0], groups) if groups and np.array_equal(*truths) else None


def same_images(run: Run, split: str) -> dict[str, list[str]]:
    """By setting, the cells whose `evaluation/<split>.png` are shown side by side.

    A setting whose cells were evaluated on different images is left out.
    """
    different = not_comparable(run, split)
    found = _side_by_side(run, f"evaluation/{split}.png")
    return {setting: cells for setting, cells in found.items() if setting not in different}


def _side_by_side(run: Run, file: str) -> dict[str, list[str]]:
    """By setting, of the first two methods that have some, one complete cell each with a certain file: of the first
    seed that both have, else of the first."""
    cells, found = run.cells.loc[run.having(file)].query("status == 'complete'").reset_index(), {}
    cells = cells.assign(seed=cells.get("seed", 0))
    for setting, group in cells.groupby("setting", observed=True):
        seeds = group.pivot(index="seed", columns="method", values="cell").iloc[:, :2]
        common = seeds.dropna()
        found[setting] = list((common if len(common) else seeds.bfill()).iloc[0])
    return found
