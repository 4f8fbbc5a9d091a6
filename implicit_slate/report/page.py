"""The report of a run from one template: as Markdown, and as a self-contained HTML page with interactive figures."""

import base64
import math
import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import jinja2
import pandas as pd
from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs_version

from implicit_slate.files import write_atomically
from implicit_slate.measures import EVALUATED, LOGGED, REFERENCES
from implicit_slate.pictures import to_png
from implicit_slate.report import figures, interactive, judging, pictures, tables
from implicit_slate.report.figures import save
from implicit_slate.report.numbers import capitalised, counted, short
from implicit_slate.report.run import PAPER, SPLITS, Run


def write(run: Run) -> Path:
    """Write `report/` in the run's folder; returns the path of `index.html`."""
    folder = run.path / "report"
    results = tables.result_spreads(run)
    _write_csv(results.drop(columns="method"), folder / "table.csv")
    splits = {s: tables.evaluation_spreads(run, s) for s in SPLITS if (run.evaluations["split"] == s).any()}
    if splits:
        rows = pd.concat(splits, names=["split", None]).reset_index("split")
        _write_csv(rows.drop(columns="method"), folder / "evaluation.csv")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("implicit_slate.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"run": run, "figures": figures, "pictures": pictures, "tables": tables, "comb": math.comb}
    environment.globals |= {"LOGGED": LOGGED, "EVALUATED": EVALUATED, "SPLITS": SPLITS, "REFERENCES": REFERENCES}
    environment.filters |= {"plain": plain, "short": short, "counted": counted, "capitalised": capitalised}
    environment.filters["address"] = lambda path: quote(path, safe="/.=,+-_")
    environment.globals["describe"] = partial(interactive.describe, run)
    charts = _draw(run, folder)
    comparison = pictures.comparison(run)
    if comparison:
        write_atomically(folder / "comparison.png", to_png(comparison))
    text = partial(
        environment.get_template("report.md").render,
        judgements=[judging.judge(run, claim) for claim in PAPER["claims"]],
        charts=charts,
        comparison=comparison is not None,
        results=results,
        splits=splits,
    )
    write_atomically(folder / "report.md", re.sub(r"\n{3,}", "\n\n", text(page=False)) + "\n")
    page = environment.get_template("page.html").render(
        body=_to_html(text(page=True), folder),
        data=interactive.page_data(run, charts),
        library=interactive.library(),
        library_version=get_plotlyjs_version(),
    )
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def plain(text: Any) -> str:
    """The text with all Markdown characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|&])", r"\\\1", " ".join(str(text).split()))


def _to_html(markdown: str, folder: Path) -> str:
    """The Markdown as HTML, with embedded pictures, and CSS classes for the verdicts."""

    def embed(match: re.Match) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((folder / unquote(match[1])).read_bytes()).decode()}"'

    def mark(match: re.Match) -> str:
        return f'<strong class="verdict {match[1].lower().replace(" ", "-")}">{match[1]}</strong>'

    body = MarkdownIt("commonmark").enable("table").render(markdown)
    body = re.sub(f"<strong>({'|'.join(map(capitalised, judging.VERDICTS))})\\.</strong>", mark, body)
    return re.sub('src="([^"]+)"', embed, body)


def _draw(run: Run, folder: Path) -> dict[str, interactive.Chart]:
    """Write every figure for which the run has data, and its numbers as CSV. Returns the corresponding charts of the
    page, by file name without suffix."""
    charts, drawn = {}, {}
    if tags := figures.overview_tags(run):
        charts["overview"] = {"keys": tags, "by": "step", "panels": "keys"}
        drawn["overview"] = figures.overview_figure(run), run.points(tags)
    for tag in figures.curve_tags(run):
        charts[LOGGED[tag].file_name] = {"keys": [tag], "by": "step", "panels": "settings"}
        drawn[LOGGED[tag].file_name] = figures.curve_figure(run, tag), run.points([tag])
    if columns := figures.result_columns(run):
        results = run.finished[["status", "setting", *run.axes, *columns]].reset_index()
        if len(run.methods) > 2 and len(run.settings) == 1 and run.loss in columns:
            charts["by_method"] = {"keys": columns, "by": "method", "panels": "keys"}
            drawn["by_method"] = figures.methods_figure(run), results
        for axis in figures.numeric_axes(run):
            charts[f"over_{axis}"] = {"keys": columns, "by": axis, "panels": "keys"}
            drawn[f"over_{axis}"] = figures.sweep_figure(run, axis), results
    for name, (figure, data) in drawn.items():
        save(figure, folder, name)
        _write_csv(data, folder / f"{name}.csv")
    return charts


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    write_atomically(path, frame.to_csv(index=False))
