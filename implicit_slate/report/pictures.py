"""Which pictures of reconstructions and slot masks the report shows; training and `evaluate` have drawn them."""

from implicit_slate.report.run import Run
from implicit_slate.report.tables import not_comparable


def panels(run: Run) -> tuple[list[str], list[str]]:
    """The cells whose `panels.png` the report shows, and the others that have one, both by setting and seed.

    It shows one cell of each method, of the first setting and seed; of a grid that only compares two modes, all.
    """
    by = ["setting", *(["seed"] if "seed" in run.axes else []), "method"]
    pictured = run.cells.loc[run.pictured].sort_values(by, kind="stable")
    few = len(run.settings) == 1 and len(run.methods) <= 2
    shown = pictured if few else pictured.drop_duplicates("method").sort_values("method")
    return list(shown.index), list(pictured.index.difference(shown.index, sort=False))


def same_images(run: Run, split: str) -> dict[str, list[str]]:
    """By setting, the cells whose `evaluation/<split>.png` are shown side by side: of the first two methods that have
    some, one complete cell each, of the first seed that both have, else of the first.

    A setting whose cells were evaluated on different images is left out.
    """
    pictured = [cell for cell in run.cells.index if (run.folder(cell) / "evaluation" / f"{split}.png").exists()]
    cells = run.cells.loc[pictured].query("status == 'complete'").reset_index()
    cells, found = cells.assign(seed=cells.get("seed", 0)), {}
    for setting, group in cells.groupby("setting", observed=True):
        seeds = group.pivot(index="seed", columns="method", values="cell").iloc[:, :2]
        common = seeds.dropna()
        if setting not in not_comparable(run, split):
            found[setting] = list((common if len(common) else seeds.bfill()).iloc[0])
    return found
