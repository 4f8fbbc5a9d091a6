"""`make paper-slice`: the commands it would start, and these at a small size on a CPU, on generated images."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.evaluation import made
from tests.tiny import SLATE_SIZES

ROOT = Path(__file__).parents[2]


def test_the_slice_trains_both_modes(tmp_path):
    plain = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "WORKERS", "CELLS_PER_DEVICE", "OUT", "DEVICES")
    }
    make = ["make", "-n", "paper-slice"]
    printed = subprocess.run(make, cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout
    assert re.search(r"data render --scenes 10000 --size 96 --out data/clevr_mirror\n", printed)
    [command] = re.findall(r"implicit-slate (ablate paper_slice .*)", printed.replace("\\\n", ""))
    assert command.split()[2:] == []

    content = yaml.safe_load((ROOT / "ablations.yaml").read_text())
    grid = content["grids"]["paper_slice"]
    grid["experiment"] = str(ROOT / grid["experiment"])
    grid["cells"]["product"][-1] = {"seeds": 1}
    grid["overrides"] = {f"model.{name}": value for name, value in SLATE_SIZES.items()} | {
        "data.root": str(made.images(tmp_path / "data", count=20)),
        "data.image_size": 16,
        "data.batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 3,
        "trainer.val_check_interval": 2,
        "trainer.log_every_n_steps": 1,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-m", "implicit_slate.cli", *command.split(), "--file", "small.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    run = tmp_path / "runs" / "paper_slice"
    assert done.returncode == 0, done.stderr
    rows = json.loads((run / "results.json").read_text())
    assert [(row["gradient"], row["status"], row["step"]) for row in rows] == [
        ("unrolled", "complete", 3), ("implicit", "complete", 3)
    ]  # fmt: skip
    assert all(row["grad_norm_max"] > 0 and row["val/cross_entropy"] > 0 for row in rows)
    assert (run / "report" / "index.html").exists()
