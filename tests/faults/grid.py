"""Grids of tiny SLATEs that are killed at random moments, and the results that must not depend on this."""

import contextlib
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from implicit_slate.ablation.configure import RESUME_POINT
from implicit_slate.ablation.tensorboard import THROUGHPUT
from implicit_slate.run_folder import DONE, RunFolder
from implicit_slate.training.checkpoints import read_checkpoint
from tests.faults.disk import Disk
from tests.tiny import SLATE_SIZES

TRAINER = {"accelerator": "cpu", "precision": "32-true", "check_val_every_n_epoch": None, "log_every_n_steps": 10}
OFTEN = {"class_path": RESUME_POINT, "init_args": {"every_seconds": 0.2}}
DATA = {"class_path": "data_modules.Sprites",
        "init_args": {"image_size": 16, "batch_size": 4, "num_images": [64, 8, 8]}}  # fmt: skip
DVAE = {
    "model": {
        "class_path": "implicit_slate.training.DVAEModule",
        "init_args": {"vocab_size": SLATE_SIZES["vocab_size"], "tau_steps": 50, "warm_start_steps": 40},
    },
    "data": DATA,
    "trainer": TRAINER | {"max_steps": 60, "val_check_interval": 20, "callbacks": [OFTEN]},
}
SLATE = {
    "model": {
        "class_path": "implicit_slate.training.SLATEModule",
        "init_args": SLATE_SIZES
        | {"dropout": 0.1, "optimization": {"learning_rate": 1e-3, "warmup_steps": 20, "patience": 1}},
    },
    "data": DATA,
    "trainer": TRAINER
    | {
        "max_steps": 60,
        "val_check_interval": 20,
        "callbacks": [
            OFTEN,
            {"class_path": "callbacks.SlotJacobian", "init_args": {"every_n_steps": 20, "num_images": 2}},
            {"class_path": "callbacks.SlotUsage", "init_args": {"every_n_steps": 20}},
            {"class_path": "callbacks.GradientNorm", "init_args": {"every_n_steps": 10}},
            {"class_path": "callbacks.Divergence"},
            {"class_path": "callbacks.Panels", "init_args": {"num_images": 2}},
        ],
    },
}  # fmt: skip
MODES = ("unrolled", "implicit", "neumann(2)", "truncated(1)")
ABLATIONS = {
    "axes": {
        "gradient": {mode: {"model.gradient": mode} for mode in MODES},
        "clip": {"on": {}, "off": {"model.optimization.clip_norm": None}},
    },
    "grids": {
        "sixteen": {"experiment": "slate.yaml", "cells": {"product": ["gradient", "clip", {"seeds": 2}]}},
        "ranks": {"experiment": "slate.yaml", "cells": {"product": [{"gradient": list(MODES[:2])}, {"seeds": 1}]}},
    },
}
for grid in ABLATIONS["grids"].values():
    grid["pretrain"] = {"experiment": "dvae.yaml", "checkpoint": "model.dvae_checkpoint"}

WEIGHTS = {"cell": 14, "server": 3, "launcher": 2, "all": 1}
"""How often each kind of process is killed. A cell's process may be one of its ranks."""
GRACE = 5.0
"""Seconds within which all processes must end after their launcher is killed."""


class Killer:
    """Kills processes of a launcher at random. With `disk`, killing the launcher is also a power cut."""

    def __init__(self, seed: int, disk: Disk | None = None):
        self.random, self.disk = random.Random(seed), disk
        self.killed: Counter[str] = Counter()

    def kill(self, launcher: subprocess.Popen, kind: str | None = None) -> bool:
        """Kills a process of the given kind, by default a random kind. False if there is none at the moment."""
        kind = kind or self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        family = _children(launcher.pid)
        server = [process for process in family if _is_server(process)]
        cells = [child for process in server for child in _children(process.pid)]
        mine = [psutil.Process(launcher.pid)] if launcher.poll() is None else []
        victims = {
            "cell": [self.random.choice(cells)] if cells else [],
            "server": server,
            "launcher": mine,
            "all": [*mine, *family] if cells else [],
        }[kind]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        if victims and kind in ("launcher", "all"):
            launcher.wait()
            alive = psutil.wait_procs(family, timeout=GRACE)[1]
            assert not alive, alive
            if self.disk is not None:
                self.disk.lose_power()
        self.killed[kind] += bool(victims)
        return bool(victims)


def write_grids(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("ablations", ABLATIONS), ("slate", SLATE), ("dvae", DVAE)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    os.sync()  # they are not to be lost in a power cut


def finish(
    folder: Path, grid: str, killer: Killer, kills: int, pause: float, kind: str | None = None, *arguments: str
) -> None:
    """Starts a grid in a folder again and again until it is done, and meanwhile makes `kills` kills of a kind, on
    average every `pause` seconds."""
    write_grids(folder)
    made, run = 0, folder / "runs" / grid
    stderr = Path(tempfile.gettempdir()) / f"faults-{os.getpid()}.txt"  # not on the disk
    while not _is_done(run):
        with stderr.open("w") as file:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "implicit_slate.cli", "ablate", grid, *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        while launcher.poll() is None:
            if made < kills:
                time.sleep(killer.random.uniform(0.0, 2 * pause))
                made += killer.kill(launcher, kind)
            else:
                launcher.wait(timeout=3000)
        said = stderr.read_text()
        # 1: a cell was killed so often that it counts as failed until the next start; 2: a check or the server was.
        expected = (0, 1, -signal.SIGKILL, *[2] * ("3 times (out of memory?)" in said))
        assert launcher.returncode in expected and "Traceback" not in said, (launcher.returncode, said)


def _is_done(run: Path) -> bool:
    if not (run / "report" / "index.html").exists():
        return False
    folder = RunFolder(run)
    return all(folder.status(cell) in DONE for cell in folder.cells)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_server(process: psutil.Process) -> bool:
    """Whether it is the fork server, and not a cell forked from it, which has the same command line."""
    try:
        return "forkserver" in " ".join(process.cmdline()) and "forkserver" not in " ".join(process.parent().cmdline())
    except (psutil.NoSuchProcess, AttributeError):
        return False


def digest(run: Path) -> dict[str, dict[str, str]]:
    """{cell: {part: hash}} of all results except times and versions."""
    found = {folder.name: of_cell(folder) for folder in (run / "pretrain", *sorted((run / "cells").iterdir()))}
    rows = list(csv.DictReader((run / "results.csv").open()))
    for row in rows:
        found[row["cell"]]["row"] = _hash(
            [item for item in row.items() if item[0] not in ("seconds", "steps_per_second")]
        )
    return found


def of_cell(folder: Path) -> dict[str, str]:
    result = json.loads((folder / "result.json").read_text())
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    for state in checkpoint["callbacks"].values():
        state.pop("seconds", None)
    files = [file for file in ("curves.csv", "panels.png", "panels.npz") if (folder / file).exists()]
    assert not list(folder.rglob(".*.*")) and not (folder / "progress.json").exists()  # nothing is left behind
    return {
        "result": _hash([result[key] for key in ("status", "step", "axes", "measures")]),
        "events": _hash(events_of(folder)),
        **{
            key: _hash(checkpoint.get(key))
            for key in ("state_dict", "optimizer_states", "callbacks", "loops", "plateau")
        },
        **{file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files},
    }


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points that TensorBoard shows, none of them twice."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    found.pop(THROUGHPUT, None)
    for tag, points in found.items():
        steps = [step for step, _ in points]
        assert len(steps) == len(set(steps)), (folder.name, tag, steps)
    return found


def _hash(content) -> str:
    return hashlib.sha256(repr(_plain(content)).encode()).hexdigest()


def _plain(content):
    if isinstance(content, torch.Tensor):
        return str(content.dtype), tuple(content.shape), hashlib.sha256(content.numpy().tobytes()).hexdigest()
    if isinstance(content, dict):
        return [(str(key), _plain(value)) for key, value in sorted(content.items(), key=lambda item: str(item[0]))]
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return content
