"""Prepare the cells but run none, for users who start `implicit-slate cell DIR` by other means."""

from implicit_slate.ablation.launchers import Work


def launch(work: Work):
    work.begin()
    if work.pretrain:
        print(f"first: implicit-slate cell {work.pretrain}")
    print(f"then, {len(work.cells)} times: implicit-slate cell DIR, as of {next(iter(work.cells.values()))}")
    return lambda: True
