"""The pictures of reconstructions and slot masks in the report, from files written by training and `evaluate`."""

import numpy as np
from PIL import Image

from implicit_slate.measures import LOGGED, column_name
from implicit_slate.pictures import Group, compare, read_panels
from implicit_slate.report.figures import method_styles
from implicit_slate.report.numbers import short
from implicit_slate.report.run import Run, damage_named
from implicit_slate.report.tables import not_comparable


def comparison(run: Run) -> Image.Image | None:
    """Reconstructions and masks of the same validation images by two methods, side by side, for the first setting in
    which two methods have a complete cell with `panels.npz`. None if there is no such setting, or the images differ.

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
    """The cells whose `evaluation/<split>.png` are shown side by side, by setting.

    Settings whose evaluations are not comparable, for example because the images differ, are left out.
    """
    different = not_comparable(run, split)
    found = _side_by_side(run, f"evaluation/{split}.png")
    return {setting: cells for setting, cells in found.items() if setting not in different}


def _side_by_side(run: Run, file: str) -> dict[str, list[str]]:
    """For each setting, one complete cell with `file` of each of the first two methods that have one: with the first
    seed that both have, otherwise with each method's first seed."""
    cells, found = run.cells.loc[run.having(file)].query("status == 'complete'").reset_index(), {}
    cells = cells.assign(seed=cells.get("seed", 0))
    for setting, group in cells.groupby("setting", observed=True):
        seeds = group.pivot(index="seed", columns="method", values="cell").iloc[:, :2]
        common = seeds.dropna()
        found[setting] = list((common if len(common) else seeds.bfill()).iloc[0])
    return found
