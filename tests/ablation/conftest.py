"""Grids of tiny models, and the command `ablate` as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from implicit_slate.ablation import cell, command
from implicit_slate.ablation.matrix import load_grid
from implicit_slate.run_folder import RunFolder
from implicit_slate.yaml_files import override

EXPERIMENT = """\
trainer:
  max_steps: 60
  accelerator: cpu
  val_check_interval: 5
  log_every_n_steps: 5
  callbacks: [{class_path: implicit_slate.ablation.resume.ResumePoint, init_args: {every_seconds: 0.2}}]
model: {class_path: tiny.TinyModule}
data: {class_path: tiny.TinyData}
"""

ABLATIONS = """\
axes:
  gradient: {unrolled: {model.gradient: unrolled}, implicit: {model.gradient: implicit}}
  clip: {on: {}, off: {model.optimization.clip_norm: null}}
  end: {well: {}, diverged: {model.diverge_at: 17}, failed: {model.fail_at: 13}}
  pause: {0: {}, 40: {model.pause: 0.04}}
grids:
  one: {experiment: experiment.yaml, cells: {gradient: implicit}}
  pair: {experiment: experiment.yaml, cells: gradient}
  slow:
    experiment: experiment.yaml
    pretrain: {experiment: experiment.yaml, checkpoint: model.checkpoint}
    cells: {chain: [{product: [gradient, clip, {pause: 40}]}, {product: [{end: diverged}, {pause: 40}]}]}
  ends: {experiment: experiment.yaml, cells: end}
"""

TINY = override(
    yaml.safe_load(EXPERIMENT),
    {"model.class_path": "tests.ablation.tiny.TinyModule", "data.class_path": "tests.ablation.tiny.TinyData"},
)
"""The same experiment for cells that run in the tests' own process."""


def prepared(folder: Path, config: dict = TINY, devices: int = 1, **overrides) -> Path:
    """Prepares a cell in `folder`, and returns the folder."""
    content = cell.preparation("a", {"seed": 0}, override(config, overrides), devices, checkpoint=None)
    cell.prepare(folder, content)
    return folder


def finish(folder: RunFolder, cell: str, status: str, step: int | None = None, **measures) -> None:
    """Writes the `result.json` of a cell."""
    folder.cell(cell).mkdir(parents=True, exist_ok=True)
    result = {"cell": cell, "status": status, "axes": folder.cells[cell], "step": step, "measures": measures}
    (folder.cell(cell) / "result.json").write_text(json.dumps(result))


class Grids:
    """A folder with grids of tiny models."""

    def __init__(self, path: Path):
        self.path = path
        self.started: list[subprocess.Popen] = []
        (path / "ablations.yaml").write_text(ABLATIONS)
        (path / "experiment.yaml").write_text(EXPERIMENT)

    def plan(self, name: str, devices: int | None = None):
        """What the command is about to do: (folder of the run, grid, preparations of every cell)."""
        grid = load_grid(self.path / "ablations.yaml", name)
        folder = RunFolder(self.path / "run", {cell.id: cell.axes for cell in grid.cells})
        return folder, grid, command._preparations(folder, grid, devices)

    def start(self, *arguments: str) -> subprocess.Popen:
        """Starts `implicit-slate ablate` in the folder."""
        process = subprocess.Popen(
            [sys.executable, "-m", "implicit_slate.cli", "ablate", *arguments],
            cwd=self.path,
            env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore SIGINT, and so would their child processes.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Runs the command. Returns its exit status, stdout and stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err


@pytest.fixture
def grids(tmp_path):
    grids = Grids(tmp_path)
    yield grids
    for process in grids.started:
        process.kill()
        process.wait()


def wait_until(condition, seconds: float = 240.0):
    """Waits until `condition()` is true, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value
