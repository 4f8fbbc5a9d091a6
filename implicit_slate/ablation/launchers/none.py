"""Prepares the cells and runs none, for whatever else starts `implicit-slate cell DIR`."""

from implicit_slate.ablation.launchers import Work


def launch(work: Work):
    work.begin()
    if work.pretrain:
        print(f"first: implicit-slate cell {work.pretrain}")
    print(f"then, {len(work.cells)} times: implicit-slate cell DIR, as of {next(iter(work.cells.values()))}")
    return lambda: True
