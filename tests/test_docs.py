"""What the documents say of files, commands and imports is so."""

import ast
import re
from pathlib import Path

import pytest

from implicit_slate.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *(ROOT / "docs").glob("*.md"),
]
TEXT = "\n".join(document.read_text() for document in DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if heading else []
        anchors = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
        assert not heading or heading in anchors, target


def test_commands_exist_and_are_named_in_the_readme():
    named = set(
        re.findall(r"^implicit-slate (data [a-z-]+|[a-z-]+)|`implicit-slate (data [a-z-]+|[a-z-]+)", TEXT, re.M)
    )
    named = {first or second for first, second in named}
    assert "cell" in named and named <= {*COMMANDS, "data"}
    readme = (ROOT / "README.md").read_text()
    assert [command for command in COMMANDS if command.rpartition(" ")[2] not in readme] == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"ablate", "test"} <= set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE)) <= targets


def test_imports_go_down_the_table_of_the_architecture():
    table = (ROOT / "docs" / "architecture.md").read_text().partition("\nSingle modules")[0]
    order = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    assert order[0] == "implicit_slate.cli" and order[-1] == "implicit_slate.fixed_point"
    folders = {f"implicit_slate.{path.parent.name}" for path in ROOT.glob("implicit_slate/*/__init__.py")}
    assert folders <= {*order}, "packages that the table leaves out"
    for path in (ROOT / folder for folder in ("implicit_slate", "callbacks", "data_modules")):
        for file in path.rglob("*.py"):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            here = _package(name, order)
            for imported in _imports(file):
                there = _package(imported, order)
                assert there is None or here is not None and order.index(there) >= order.index(here), (name, imported)


def _package(module: str, order: list[str]) -> str | None:
    """The row of the table that a module belongs to; None for the single modules that all may use."""
    return next((package for package in order if f"{module}.".startswith(f"{package}.")), None)


def _imports(file: Path) -> list[str]:
    """Every module that a file imports, also inside functions; `from a import b` as both `a` and `a.b`."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
