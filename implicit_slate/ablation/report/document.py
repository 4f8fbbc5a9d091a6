"""One document, two forms: a list of blocks is written as Markdown and as one self-contained HTML page.

Text in blocks may hold `**bold**`, `` `code` `` and `[link](address)`, the part of Markdown that both forms know.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from implicit_slate.ablation.report.formatting import capitalised


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Verdicts:
    """Claims, each with a verdict and a sentence."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text; a line break in a value starts a second, smaller line. The first `labels` columns are words."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1


@dataclass(frozen=True)
class Image:
    """A picture beside the document, by its file name, with a caption that may hold links."""

    file: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Images:
    """Pictures side by side where the page is wide enough."""

    images: Sequence[Image]


@dataclass(frozen=True)
class Folded:
    """Blocks that only some readers want."""

    title: str
    blocks: Sequence["Block"]


Block = Heading | Paragraph | Verdicts | Table | Images | Folded


def link(text: str, path: str) -> str:
    """A link to a file, with the address quoted for both forms."""
    return f"[{text}]({quote(path, safe='/.=,+-_')})"


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The document as Markdown; pictures and links are relative."""
    return "\n\n".join([f"# {title}", *map(_markdown, blocks)]) + "\n"


def to_html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The document as one HTML page: style and pictures, read from `folder`, are inside it."""
    style = (files(__package__) / "style.css").read_text()
    body = "\n".join(_html(block, Path(folder)) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Verdicts(items):
            return "\n".join(
                f"- {claim}  \n  **{capitalised(verdict)}.** {sentence}" for claim, verdict, sentence in items
            )
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *rows]
            return "\n".join("| " + " | ".join(_markdown_cell(value) for value in line) + " |" for line in lines)
        case Images(images):
            return "\n\n".join(f"![{image.alt}]({quote(image.file)})\n\n{image.caption}" for image in images)
        case Folded(title, blocks):
            return "\n\n".join([f"<details><summary>{title}</summary>", *map(_markdown, blocks), "</details>"])


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Verdicts(items):
            lines = [
                f'<li><p class="claim">{_inline(claim)}</p><p><span class="verdict {verdict.replace(" ", "-")}">'
                f"{capitalised(verdict)}</span> {_inline(sentence)}</p></li>"
                for claim, verdict, sentence in items
            ]
            return '<ol class="verdicts">\n' + "\n".join(lines) + "\n</ol>"
        case Table(header, rows, labels):
            head = "".join(f"<th{_kind(i, labels)}>{_inline(value)}</th>" for i, value in enumerate(header))
            lines = ["".join(f"<td{_kind(i, labels)}>{_html_cell(v)}</td>" for i, v in enumerate(row)) for row in rows]
            body = "\n".join(f"<tr>{line}</tr>" for line in lines)
            return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        case Images(images):
            return '<div class="images">' + "".join(_figure(image, folder) for image in images) + "</div>"
        case Folded(title, blocks):
            inside = "\n".join(_html(inner, folder) for inner in blocks)
            return f"<details><summary>{_inline(title)}</summary>\n{inside}\n</details>"


def _figure(image: Image, folder: Path) -> str:
    data = base64.b64encode((folder / image.file).read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(image.alt)}">'
        f"<figcaption>{_inline(image.caption)}</figcaption></figure>"
    )


def _inline(text: str) -> str:
    text = html.escape(text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return re.sub(r"\[([^\]]*)\]\(([^)]*)\)", r'<a href="\2">\1</a>', text)


def _html_cell(value: str) -> str:
    first, *rest = value.split("\n")
    return _inline(first) + "".join(f"<small>{_inline(line)}</small>" for line in rest)


def _markdown_cell(value: str) -> str:
    first, *rest = value.split("\n")
    return " ".join([first, *(f"({line})" for line in rest)]).replace("|", "\\|")


def _kind(column: int, labels: int) -> str:
    return ' class="label"' if column < labels else ""
