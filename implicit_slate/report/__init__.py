"""`implicit-slate report RUN_DIR`: rebuild the report of a grid from the files of its cells, at any time."""

from collections.abc import Sequence
from pathlib import Path

from implicit_slate.errors import ArgumentParser
from implicit_slate.run_folder import RunFolder

__all__ = ["main", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `report/` in a grid's folder from its result files alone; returns the path of `index.html`.

    It also works for a grid that is still running, or has diverged or failed cells; the report names them.

    Raises:
        UserError: `run_dir` is not the folder of a grid, or one of its result files is damaged.
    """
    from implicit_slate.report import page  # imports matplotlib and pandas, which `--help` does not need
    from implicit_slate.report.run import load_run

    return page.write(load_run(run_dir))


def main(argv: Sequence[str]) -> int:
    """The command `implicit-slate report RUN_DIR`; returns its exit status."""
    run_dir = parser().parse_args(argv).run_dir
    RunFolder(run_dir).write_results()
    print(write_report(run_dir))
    return 0


def parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate report", __doc__, "implicit-slate report runs/demo")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder of a grid, such as runs/demo")
    return parser
