"""The report of a grid, rebuilt at any moment from the files that the grid left: `implicit-slate report RUN_DIR`."""

from collections.abc import Sequence
from pathlib import Path

from implicit_slate.ablation.report.document import to_html, to_markdown
from implicit_slate.ablation.report.figures import draw_all
from implicit_slate.ablation.report.reading import read_run
from implicit_slate.ablation.report.sections import contents
from implicit_slate.ablation.report.summary import summarise, to_csv
from implicit_slate.errors import ArgumentParser
from implicit_slate.files import write_atomically

__all__ = ["main", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `report/` in a grid's folder from its result files alone, and return the path of `index.html`.

    It works on a grid that is under way, and on one with diverged or failed cells: those are named as such.

    Raises UserError where `run_dir` is not the folder of a grid, or one of its result files is damaged.
    """
    run = read_run(Path(run_dir))
    folder = run.folder / "report"
    figures = draw_all(run, folder)
    lines = summarise(run)
    write_atomically(folder / "table.csv", to_csv(run, lines))
    title = f"Report of the grid “{run.name}”"
    blocks = contents(run, figures, lines, folder)
    write_atomically(folder / "report.md", to_markdown(title, blocks))
    write_atomically(folder / "index.html", to_html(title, blocks, folder))
    return folder / "index.html"


def main(argv: Sequence[str] | None = None) -> int:
    """The command `implicit-slate report RUN_DIR`; returns its exit status."""
    parser = ArgumentParser("implicit-slate report", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder of a grid, as runs/demo")
    print(write_report(parser.parse_args(argv).run_dir))
    return 0
