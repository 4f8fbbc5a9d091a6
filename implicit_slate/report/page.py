"""The report of a run as Markdown, by a template, and as one self-contained HTML page, made of the Markdown."""

import base64
import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markdown_it import MarkdownIt

from implicit_slate.files import write_atomically
from implicit_slate.measures import EVALUATED, LOGGED
from implicit_slate.report import evaluation_tables, figures, judging, pictures, summary
from implicit_slate.report.drawing import save
from implicit_slate.report.evaluations import SPLITS
from implicit_slate.report.numbers import capitalised, counted, short
from implicit_slate.report.run import Run


def write(run: Run) -> Path:
    """Write `report/` in the run's folder, and return the path of `index.html`."""
    folder = run.path / "report"
    spread = summary.result_spreads(run)
    write_atomically(folder / "table.csv", summary.with_axes(run, spread).to_csv(index=False))
    splits = {split: evaluation_tables.evaluation_spreads(run, split) for split in evaluation_tables.splits_of(run)}
    if splits:
        rows = pd.concat(splits, names=["split", None]).reset_index("split").reset_index(drop=True)
        write_atomically(folder / "evaluation.csv", summary.with_axes(run, rows).to_csv(index=False))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("implicit_slate.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {
        "run": run,
        "tables": evaluation_tables,
        "figures": figures,
        "comb": math.comb,
        "link": link,
    }
    environment.globals |= {"LOGGED": LOGGED, "EVALUATED": EVALUATED, "SPLITS": SPLITS, "PAPER": judging.PAPER}
    environment.filters |= {"table": markdown_table, "plain": plain, "short": short, "counted": counted}
    environment.filters["capitalised"] = capitalised
    markdown = environment.get_template("report.md").render(
        judgements=judging.judge(run),
        drawn=_draw(run, folder),
        results=summary.results_table(run, spread),
        wide=[summary.NAMES[column] for column in spread.loc[spread["geometric"], "measurement"].unique()],
        evaluations=splits,
        same_images=_same_images(run, next(iter(splits)), folder) if splits else None,
        panels=_panels(run, folder),
    )
    markdown = re.sub(r"\n{3,}", "\n\n", markdown) + "\n"
    write_atomically(folder / "report.md", markdown)
    page = environment.get_template("page.html").render(body=_to_html(markdown, folder))
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def link(text: str, path: str) -> str:
    """A link to a file, with its address quoted."""
    return f"[{text}]({quote(path, safe='/.=,+-_')})"


def plain(text: Any) -> str:
    """Text in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]<>|&])", r"\\\1", " ".join(str(text).split()))


def markdown_table(table: pd.DataFrame, labels: int = 1) -> str:
    """A Markdown table; the first `labels` columns are words, the others numbers."""
    rules = [":---" if i < labels else "---:" for i in range(len(table.columns))]
    rows = [table.columns, rules, *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _to_html(markdown: str, folder: Path) -> str:
    """The Markdown as HTML, with the pictures inside it and the verdicts marked by classes."""

    def embed(match: re.Match) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((folder / match[1]).read_bytes()).decode()}"'

    def mark(match: re.Match) -> str:
        return f'<strong class="verdict {match[1].lower().replace(" ", "-")}">{match[1]}</strong>'

    body = MarkdownIt("commonmark").enable("table").render(markdown)
    body = re.sub(f"<strong>({'|'.join(map(capitalised, judging.VERDICTS))})\\.</strong>", mark, body)
    return re.sub('src="([^"]+)"', embed, body)


def _draw(run: Run, folder: Path) -> set[str]:
    """Draw every figure that the run has numbers for, with the numbers beside it; the names of their files."""
    drawn = {}
    if tags := figures.overview_tags(run):
        drawn["overview"] = figures.overview_figure(run), run.points(tags)
    for tag in figures.curve_tags(run):
        drawn[LOGGED[tag].file_name] = figures.curve_figure(run, tag), run.points([tag])
    if columns := figures.result_columns(run):
        results = run.finished[["status", "setting", *run.axes, *columns]].reset_index()
        if len(run.methods) > 2 and len(run.settings) == 1 and run.loss in columns:
            drawn["by_method"] = figures.methods_figure(run), results
        for axis in figures.numeric_axes(run):
            drawn[f"over_{axis}"] = figures.sweep_figure(run, axis), results
    for name, (figure, data) in drawn.items():
        save(figure, folder, name)
        write_atomically(folder / f"{name}.csv", data.to_csv(index=False))
    return set(drawn)


def _panels(run: Run, folder: Path) -> dict[str, Any]:
    """The panels that the report shows, copied into its folder: file by cell; and the cells whose are only linked."""
    shown, others = pictures.panels(run)
    files = {}
    for cell in shown:
        words = run.place(cell) if len(shown) > len(run.methods) else run.cells.loc[cell, "method"]
        files[cell] = f"panels_{_slug(words)}.png"
        write_atomically(folder / files[cell], (run.folder(cell) / "panels.png").read_bytes())
    return {"files": files, "others": others}


def _same_images(run: Run, split: str, folder: Path) -> dict[str, Any]:
    """Pictures of the same images in each mode, saved: file and cells by setting; the settings with different ones."""
    found, different = {}, []
    for setting in run.settings:
        seen = pictures.same_images(run, split, setting)
        if len({arrays["truth"].tobytes() for arrays in seen.values()}) > 1:
            different.append(setting)
        elif seen:
            name = f"qualitative_{_slug(setting)}" if run.setting_axes else "qualitative"
            save(pictures.same_images_figure(run, seen), folder, name)
            found[setting] = (f"{name}.png", list(seen))
    return {"split": split, "pictures": found, "different": different}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
