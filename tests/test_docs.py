"""The documents are right about files, commands and imports, and their Python code runs."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
import yaml

from implicit_slate.cli import COMMANDS, main, parser
from implicit_slate.metrics.inception import WeightsMissing, find_weights
from tests.models.conftest import reference, state  # noqa: F401 (fixtures)
from tests.report.made import Grid

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXT = "\n".join(document.read_text() for document in DOCUMENTS)
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
CODE = {
    name: re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    for name, document in zip(NAMES, DOCUMENTS)
    if name != "CONTRIBUTING.md"  # whose code tests/test_recipes.py runs
}
LINES = {
    line
    for document in DOCUMENTS
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^(?:\$ )?(implicit-slate .*|make .*)$", block, re.MULTILINE)
}
"""The commands that the documents show in code blocks."""


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


def test_commands_exist():
    named = set(re.findall(r"`implicit-slate (data [a-z-]+|[a-z-]+)", TEXT))
    assert "cell" in named and named - {"--help", "--version"} <= {*COMMANDS, "data"}


@pytest.mark.parametrize("line", sorted(line for line in LINES if line.startswith("implicit-slate")))
def test_a_command_that_is_shown_can_be_given(line, capsys):
    _, *words = shlex.split(re.sub(r"\[.*?\]|\.\.\.", "", line), comments=True)
    name = " ".join(words[: 2 if words[0] == "data" else 1])
    assert name in COMMANDS
    words = words[len(name.split()) :]
    if {"--help"} & {*words}:
        return
    arguments, rest = parser(name).parse_known_args(words)
    options = [word for word in rest if word.startswith("--")]
    assert all(word.startswith(("--data.", "--model.", "--trainer.")) for word in options) and "--out" not in rest
    for word in words:
        assert not word.startswith("experiments/") or (ROOT / word).exists()
    if name == "ablate":
        shown = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(axes:.*?)^```", TEXT, re.M | re.S)]
        grids = [
            *yaml.safe_load((ROOT / "ablations.yaml").read_text())["grids"],
            *(g for s in shown for g in s["grids"]),
        ]
        assert arguments.grid in grids
    keys = [word for word in options if not word.startswith("--trainer.callbacks")]
    if name == "fit" and arguments.config.startswith("experiments/") and keys:
        with pytest.raises(SystemExit) as end:  # parsed by Lightning, every key and value
            main(
                [
                    "fit",
                    *(str(ROOT / word) if word.startswith("experiments/") else word for word in words),
                    "--print_config",
                ]
            )
        assert end.value.code == 0


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    variables = set(re.findall(r"\$\((?:or \$\(|if \$\()?([A-Z]+)\b", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"\b([A-Z]+)=", " ".join(line for line in LINES if line.startswith("make")))) <= variables
    assert {"ablate", "test"} <= set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE)) <= targets


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "docs/fid.md" else ())  # Inception is slow
        for name, blocks in CODE.items()
        if blocks
    ],
)
def test_the_python_of_a_document_runs(name, tmp_path, monkeypatch, state):  # noqa: F811
    if name == "docs/fid.md":
        try:
            find_weights()
        except WeightsMissing:
            pytest.skip("the weights of FID are not here")
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state}, "public.pt")
    sizes = ["--num-slots", "3", "--num-iterations", "3", "--num-slot-heads", "1", "--num-heads", "4"]
    assert main(["import-checkpoint", "public.pt", "CKPT", *sizes]) == 0
    grid = Grid(tmp_path / "runs" / "demo")
    for gradient in ("unrolled", "implicit"):
        grid.cell(gradient, clip="on")
    grid.done()
    namespace: dict = {}
    for block in CODE[name]:
        exec(compile(block, name, "exec"), namespace)
    if name == "docs/tutorial.md":
        assert (tmp_path / "slots.png").stat().st_size > 1000


def test_the_training_of_the_tutorial_leaves_what_it_says(tmp_path, monkeypatch, capsys):
    """Four steps of it, with the callback that draws; the tutorial's other commands are parsed by a test above."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "tutorial.md").read_text()
    line = re.search(r"^implicit-slate (fit .* runs/first)$", text, re.MULTILINE)[1]
    small = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--data.num_images=[16,8,8]"]
    assert main([*line.split(), *small, "--trainer.callbacks=[{class_path: callbacks.Panels}]"]) == 0
    for file in re.findall(r"^\| `([\w.]+)[…/]*` \|", text, re.MULTILINE):
        assert list((tmp_path / "runs/first/lightning_logs/version_0").glob(f"{file}*")), file


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "commands.html").read_text()
    assert [name for name in COMMANDS if f"usage: implicit-slate {name} " not in commands] == []


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


def test_no_modules_import_each_other_in_a_circle():
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for folder in ("implicit_slate", "callbacks", "data_modules")
        for file in (ROOT / folder).rglob("*.py")
    }
    imports = {name: {*_imports(file)} & modules.keys() for name, file in modules.items()}
    assert len(imports["implicit_slate.ablation.cell"]) > 5
    TopologicalSorter(imports).prepare()  # raises an error that names a circle


def _package(module: str, order: list[str]) -> str | None:
    """The table row to which a module belongs; None for the single modules that all may use."""
    return next((package for package in order if f"{module}.".startswith(f"{package}.")), None)


def _imports(file: Path) -> list[str]:
    """All modules that a file imports, including inside functions; `from a import b` as both `a` and `a.b`."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
