"""One cell in its own process: from an experiment file and overrides to a trained model and `result.json`.

    python -m implicit_slate.ablation.cell DIR      trains the cell that was prepared in DIR

Importing this module takes seconds. The runner therefore has one process import it and forks a process a cell from
that one; only cells on several devices start by the command above, which Lightning repeats for every rank.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch

import callbacks  # noqa: F401  (what experiments name is imported before the fork)
import implicit_slate.training  # noqa: F401
from callbacks import Diverged
from callbacks.progress import Progress
from data_modules import CLEVRMirror, MirrorScenes  # noqa: F401
from implicit_slate.ablation.configure import build, complete
from implicit_slate.ablation.experiment import Experiment, override
from implicit_slate.ablation.hparams import log_hparams
from implicit_slate.ablation.result import write_result
from implicit_slate.ablation.run_folder import CellLock
from implicit_slate.files import write_atomically
from implicit_slate.fixed_point import NotFinite
from implicit_slate.yaml_files import load_yaml

PARENT_CHECK_SECONDS = 0.5
OUR_CALLBACKS = ("callbacks.progress.Progress", "implicit_slate.ablation.resume.ResumePoint")


def prepare(folder: Path, cell_id: str, axes: Mapping[str, Any], experiment: Experiment, devices: int) -> None:
    """Write the cell's `config.yaml`, complete with every default, and `cell.json`, unless they are there."""
    if (folder / "cell.json").exists():
        return
    config = _in_folder(experiment.config(), folder, devices)
    write_atomically(folder / "config.yaml", complete(config, experiment.origin))
    write_atomically(folder / "cell.json", json.dumps({"cell": cell_id, "axes": axes}) + "\n")


def run(folder: Path) -> str:
    """Train the prepared cell in `folder` from its last checkpoint on, write `result.json` however it ends, and
    return its status."""
    started = time.monotonic()
    last, step, seconds = folder / "checkpoints" / "last.ckpt", None, None
    status, error, trainer = "complete", None, None
    try:
        config = load_yaml(folder / "config.yaml")
        if last.exists():
            # TensorBoard then forgets what came after the checkpoint, which is done again.
            done = torch.load(last, map_location="cpu", mmap=True, weights_only=False)["global_step"]
            config["trainer"]["logger"]["init_args"]["purge_step"] = done + 1
            print(f"resumed from step {done}", flush=True)
        cli = build(config, str(folder / "config.yaml"))
        trainer = cli.trainer
        trainer.fit(cli.model, cli.datamodule, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    except (Diverged, NotFinite) as divergence:
        status, step = "diverged", getattr(divergence, "step", None)
        print(divergence, flush=True)
    except Exception as problem:
        traceback.print_exc()
        status, error = "failed", " ".join(f"{type(problem).__name__}: {problem}".split())
    if trainer is not None:
        step = trainer.global_step if step is None else step
        seconds = next((c.seconds for c in trainer.callbacks if isinstance(c, Progress)), time.monotonic() - started)
    if trainer is None or trainer.is_global_zero:
        if trainer is not None and trainer.logger is not None:
            trainer.logger.save()
            trainer.logger.experiment.flush()
        result = write_result(folder, status, step, seconds, error)
        axes = json.loads((folder / "cell.json").read_text())["axes"]
        if trainer is not None and status != "failed" and axes:  # what trains before the grid has no place on it
            log_hparams(trainer.logger.experiment, axes, result)
        (folder / "progress.json").unlink(missing_ok=True)
    return status


def run_forked(folder: Path, lock: CellLock, threads: int | None, visible_devices: str | None) -> None:
    """`run` in a fresh fork: with its own log, threads and devices, for as long as the process that asked for it lives.

    `lock` is only held: the cell is ours until this process is gone.
    """
    _redirect_output(folder / "log.txt")
    if visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices
    if threads is not None:
        torch.set_num_threads(threads)
    threading.Thread(target=_exit_with, args=(parent_process().join,), daemon=True).start()
    run(folder)


def _in_folder(config: dict[str, Any], folder: Path, devices: int) -> dict[str, Any]:
    """The config with everything that it writes going to `folder`."""
    callbacks_of_experiment = (config.get("trainer") or {}).get("callbacks") or []
    if not isinstance(callbacks_of_experiment, list):
        callbacks_of_experiment = [callbacks_of_experiment]
    there = {callback["class_path"] for callback in callbacks_of_experiment}
    ours = [{"class_path": name} for name in OUR_CALLBACKS if name not in there]
    logger = {"save_dir": str(folder), "name": "", "version": "", "default_hp_metric": False}
    settings = {
        "trainer.default_root_dir": str(folder),
        "trainer.logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": logger},
        "trainer.callbacks": [*callbacks_of_experiment, *ours],
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.enable_autolog_hparams": False,  # the axes are our hyperparameters, written at the end
        "trainer.devices": devices,
    }
    if devices > 1:
        settings["trainer.strategy"] = "ddp"
    return override(config, settings)


def _redirect_output(path: Path) -> None:
    log = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)


def _exit_with(wait_for_parent) -> None:
    """End this process at once when its parent is gone: a cell of a killed runner must not go on unseen."""
    wait_for_parent()
    os._exit(1)


def _parent_changes() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)


if __name__ == "__main__":
    threading.Thread(target=_exit_with, args=(_parent_changes,), daemon=True).start()
    # Of a rank that fails, Lightning wants to see it in the exit status, to end the others.
    sys.exit(run(Path(sys.argv[1])) == "failed")
