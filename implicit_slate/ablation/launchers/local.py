"""Run the cells on this machine, or plan how it would run them."""

from implicit_slate.ablation.launchers import Work
from implicit_slate.ablation.plan import print_plan
from implicit_slate.ablation.pool import LocalPool, Resources
from implicit_slate.errors import UserError


def launch(work: Work) -> None:
    """Run all cells on this machine; returns when every cell has a result."""
    options = work.options
    if work.nodes > 1:
        raise UserError(f"--launcher local: the cells of this run are for {work.nodes} nodes each")
    resources = Resources.share_out(options.workers, work.devices, work.accelerators, options.cells_per_device)
    if options.dry_run:
        return print_plan(work, resources)
    work.begin()

    def report(name: str, event: str) -> None:
        work.display.event(name, event)
        work.folder.write_results()

    pool = LocalPool(report)
    with work.display.shown():
        if work.pretrain:
            pool.run({"pretrain": work.pretrain}, resources)
            if not work.folder.is_pretrained():
                return
        pool.run(work.cells, resources)
