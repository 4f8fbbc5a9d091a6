"""Every package that the code imports is declared in pyproject.toml."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = {"implicit_slate", "callbacks", "data_modules", "benchmarks", "examples", "tests"}
OF_TORCH = {"triton"}
"""Not declared: installed with GPU builds of torch, in the right version, and not needed otherwise."""


def imported(folder):
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.partition(".")[0]


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    declared = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}
    packages = {name for folder in OURS - {"tests"} for name in imported(folder)}
    packages -= OURS | OF_TORCH | sys.stdlib_module_names
    distributions = packages_distributions()
    of = {name: {d.lower().replace("_", "-") for d in distributions.get(name, [name])} for name in packages}
    assert sorted(name for name, found in of.items() if not declared & found) == []
