"""Sphinx configuration of the documentation site; `make docs` builds it into docs/_build."""

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "88"  # width of the help texts in the reference

from implicit_slate import __version__  # noqa: E402
from implicit_slate.cli import COMMANDS, parser  # noqa: E402

project = "implicit SLATE"
version = release = __version__
copyright = "MIT license"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "implicit SLATE"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # because results.md skips a heading level in one place

default_role = "literal"  # because docstrings write `names` as in Markdown
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # Lightning's are written for its own site
add_module_names = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True


ELSEWHERE = re.compile(r"\[[^]]*\]\((\.\./[^)]+)\)\n")
"""The content of a page that stands for a file elsewhere in the repository: only a link to that file."""


def _text_file(page: Path) -> Path:
    """The file with a page's text: the page itself, or the file that it links to."""
    found = ELSEWHERE.fullmatch(page.read_text())
    return (page.parent / found[1]).resolve() if found else page


PAGES = {_text_file(page): page for page in (ROOT / "docs").rglob("*.md")}


class Commands(Directive):
    """A directive that makes one section per command, with the help that its parser prints."""

    def run(self) -> list[nodes.Node]:
        sections = []
        for name in COMMANDS:
            section = nodes.section(ids=[name.replace(" ", "-")], names=[name])
            section += nodes.title(text=name)
            section += nodes.literal_block(text=parser(name).format_help(), language="text")
            sections.append(section)
        return sections


def read(app, docname: str, content: list[str]) -> None:
    """Fills in a page's text, and changes links to repository files into links to their pages on the site."""
    page = Path(app.env.doc2path(docname))
    file = _text_file(page)

    def on_the_site(link: re.Match) -> str:
        path, mark, heading = link[1].partition("#")
        target = (file.parent / path).resolve()
        if path and not path.startswith("http") and (target in PAGES or ROOT / "docs" in target.parents):
            path = os.path.relpath(PAGES.get(target, target), page.parent)
        return f"]({path}{mark}{heading})"

    content[0] = re.sub(r"\]\(([^)\s]+)\)", on_the_site, file.read_text())


def setup(app) -> None:
    app.connect("source-read", read)
    app.add_directive("commands", Commands)
