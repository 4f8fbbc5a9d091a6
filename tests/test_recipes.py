"""The recipes of CONTRIBUTING.md, followed word for word in a copy of the code, and their results."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
RECIPES = dict(
    part.split("\n", 1)
    for part in (ROOT / "CONTRIBUTING.md").read_text().partition("## Five recipes")[2].split("\n### ")[1:]
)
STEP = re.compile(
    r"^(?:New file `(?P<new>\S+)`"
    r"|In `(?P<file>\S+)`, (?P<how>before|after|in place of) (?P<ticks>`+) ?(?P<line>[^\n]+?) ?(?P=ticks)):\n\n"
    r"```\w+\n(?P<code>.*?)\n```$",
    re.MULTILINE | re.DOTALL,
)
GRID = """
  recipes:
    experiment: experiments/linear_slots.yaml
    overrides:
      model.gradient: random_neumann(2)
      model.image_size: 16
      data.class_path: data_modules.Icons
      data.root: icons
      data.image_size: 16
      data.batch_size: 4
      model.optimization.warmup_steps: null
      model.optimization.half_life: 1
      trainer.max_steps: 4
      trainer.val_check_interval: 2
      trainer.log_every_n_steps: 2
    cells: rate_floor
"""
IN_PYTHON = """
from pathlib import Path

import torch

from implicit_slate.ablation.cell import preparation, prepare
from implicit_slate.ablation.matrix import load_grid
from implicit_slate.cli import main
from implicit_slate.fixed_point import fixed_point
from implicit_slate.run_folder import RunFolder
from implicit_slate.yaml_files import load_yaml, override

weight = torch.tensor(0.5, requires_grad=True)
solution = fixed_point(lambda z: torch.tanh(weight * z + 1), torch.zeros(2, 3), gradient="random_neumann(3)")
solution.z.sum().backward()
print("gradient", float(weight.grad), "evaluations", solution.evaluations)
print("check", main(["data", "check", "icons", "icons"]))
main(["ablate", "recipes", "--list"])
grid = load_grid(Path("ablations.yaml"), "recipes")
run = RunFolder(Path("runs/recipes"), {cell.id: cell.axes for cell in grid.cells})
for cell in grid.cells:
    config = override(load_yaml(grid.experiment), cell.overrides)
    prepare(run.cell(cell.id), preparation(cell.id, cell.axes, config, devices=1, checkpoint=None))
    print("cell", main(["cell", str(run.cell(cell.id))]))
run.write_results()
checkpoint = run.cell(cell.id) / "checkpoints" / "last.ckpt"
print("evaluate", main(["evaluate", str(checkpoint), "--metrics", "reconstruction,segmentation", "--draws", "1"]))
main(["fit", "--help"])
"""


def listed(recipe: str) -> set[str]:
    """The files that a recipe lists."""
    return set(re.findall(r"`(\S+)`", re.search(r"^Files: (.*?)\n\n", RECIPES[recipe], re.MULTILINE | re.DOTALL)[1]))


def follow(step: re.Match, root: Path) -> None:
    """Applies one step of a recipe: a new file, or code before or after the one line that starts as the step says."""
    path, code = root / (step["new"] or step["file"]), step["code"]
    if step["new"]:
        assert not path.exists()
        path.write_text(code + "\n")
        return
    lines = path.read_text().split("\n")
    [place] = [number for number, line in enumerate(lines) if line.strip().startswith(step["line"])]
    line = lines[place]
    code = indent(code, line[: len(line) - len(line.lstrip())])
    if re.search(r"^class ", code, re.MULTILINE):
        code += "\n\n"
    lines[place] = {"before": f"{code}\n{line}", "after": f"{line}\n{code}", "in place of": code}[step["how"]]
    path.write_text("\n".join(lines))


def run(root: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The code with all recipes applied, icons, and a tiny grid of the new model on them."""

    def copy_or_link(source: str, target: str) -> None:
        (os.symlink if os.path.getsize(source) > 100_000 else shutil.copy)(source, target)

    root = tmp_path_factory.mktemp("recipes") / "copy"
    for folder in ("callbacks", "data_modules", "docs", "experiments", "implicit_slate"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, root / folder, copy_function=copy_or_link, ignore=ignore)
    for file in ("ablations.yaml", "pyproject.toml"):
        shutil.copy(ROOT / file, root)
    for text in RECIPES.values():
        for step in STEP.finditer(text):
            follow(step, root)
    with (root / "ablations.yaml").open("a") as grids:
        grids.write(GRID)
    for split in ("train", "val", "test"):
        for kind, shape in (("images", (16, 16, 3)), ("masks", (16, 16))):
            (root / "icons" / kind / split).mkdir(parents=True)
            for number in range(8):
                pixels = np.zeros(shape, np.uint8)
                pixels[number : number + 6, 4:10] = 1 if kind == "masks" else (250, 20 * number, 40)
                Image.fromarray(pixels).save(root / "icons" / kind / split / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def said(copy) -> str:
    """The output of several commands, run in a single process because importing Lightning takes most of the time."""
    result = run(copy, "-c", IN_PYTHON)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_lists_the_files_that_it_touches(recipe):
    steps = list(STEP.finditer(RECIPES[recipe]))
    assert listed(recipe) == {step["new"] or step["file"] for step in steps}
    assert len(steps) == RECIPES[recipe].count("```") // 2  # all code shown belongs to a step


def test_the_lists_that_need_what_is_new_are_where_they_are_said_to_be():
    introduction = (ROOT / "CONTRIBUTING.md").read_text().partition("## Five recipes")[2].partition("\n### ")[0]
    named = re.findall(r"`([A-Z]+)` in `(\S+)`", introduction)
    assert len(named) == 6
    for name, file in named:
        assert re.search(rf"^{name} = ", (ROOT / file).read_text(), re.MULTILINE), (name, file)


def test_there_are_five_recipes_in_the_style_of_the_project(copy):
    assert list(RECIPES) == ["A gradient mode", "A data set", "A trick or an axis", "A slot model", "A metric"]
    files = [path for recipe in RECIPES for path in sorted(listed(recipe)) if path.endswith(".py")]
    for check in (("check",), ("format", "--check")):
        result = run(copy, "-m", "ruff", *check, "--no-cache", *files)
        assert result.returncode == 0, result.stdout


def test_a_gradient_mode(said):
    found = re.search(r"^gradient (\S+) evaluations (\d+)$", said, re.MULTILINE)
    assert float(found[1]) > 0 and 8 <= int(found[2]) <= 10  # 7 iterations, and 1 to 3 recorded applications


def test_a_data_set(said):
    assert "\ncheck 0\n" in said and "train 8, val 8, test 8" in said
    assert "data_modules.Icons" in said  # in the help of `fit`


def test_a_slot_model(said, copy):
    assert len(re.findall("^cell 0$", said, re.MULTILINE)) == 2 and "\nevaluate 0\n" in said
    for file in ("panels.png", "evaluation/test.json"):
        assert list(copy.glob(f"runs/recipes/cells/*/{file}"))
    assert "implicit_slate.training.LinearSlotsModule" in said


def test_a_trick(said, copy):
    assert "rate_floor=on,seed=0   waiting" in said
    assert [(row["rate_floor"], row["status"]) for row in results(copy)] == [("off", "complete"), ("on", "complete")]
    rates = [
        [float(row["value"]) for row in csv.DictReader(curves.open()) if row["tag"] == "train/learning_rate"]
        for curves in sorted(copy.glob("runs/recipes/cells/*/curves.csv"))
    ]
    assert rates[0][-1] < rates[1][-1] == pytest.approx(1e-3 * 0.5)


def test_a_metric(said, copy):
    assert all(1 / 6 <= float(row["slots/largest_share_final"]) <= 1 for row in results(copy))
    table = run(copy, "-m", "implicit_slate.measures").stdout
    assert "slots/largest_share" in table and table in (copy / "docs" / "measures.md").read_text()


def results(copy: Path) -> list[dict[str, str]]:
    """`results.csv` of the tiny grid."""
    return list(csv.DictReader((copy / "runs/recipes/results.csv").open()))
