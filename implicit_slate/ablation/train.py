"""Train a prepared cell in this process: from its configuration to a trained model and `result.json`.

Importing this module takes seconds; `pool.py` describes how cells on one machine avoid that.
"""

import math
import traceback
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

import callbacks  # noqa: F401  (classes that experiments name are imported here, before cells are forked)
import implicit_slate.training  # noqa: F401
from callbacks import Diverged
from data_modules import CLEVRMirror, MirrorScenes  # noqa: F401
from implicit_slate.ablation.configure import RESUME_POINT, build
from implicit_slate.ablation.resume import Curves, ResumePoint, validations, write_curves
from implicit_slate.ablation.tensorboard import flush_events, log_configuration, log_hparams
from implicit_slate.errors import UserError
from implicit_slate.files import read_json, write_atomically
from implicit_slate.fixed_point import NotFinite
from implicit_slate.processes import expecting_children
from implicit_slate.run_folder import LAST, make_result, write_result
from implicit_slate.training.checkpoints import Foreign, read_checkpoint
from implicit_slate.yaml_files import override, with_callback


def train(folder: Path) -> str:
    """Train the prepared cell in `folder`, from its last checkpoint if there is one. Writes `result.json` even if
    training fails or diverges; returns the cell's status."""
    folder = folder.resolve()
    status, error, step, seconds, trainer, curves = "complete", None, None, None, None, {}
    try:
        done, curves = _resume_point(folder)
        cli = build(configuration(folder, read_json(folder / "cell.json"), done), str(folder / "config.yaml"))
        trainer = cli.trainer
        if trainer.is_global_zero:
            config = cli.parser.dump(cli.config, skip_unset=False)
            write_atomically(folder / "config.yaml", config)
            if done is None:
                log_configuration(trainer.logger.experiment, config)
        last = None if done is None else str(folder / LAST)
        with expecting_children():  # on several devices Lightning starts the other processes
            trainer.fit(cli.model, cli.datamodule, ckpt_path=last, weights_only=True)
        losses = [loss for _, loss in validations(trainer.logger.curves)]
        if not all(map(math.isfinite, losses[-1:])):  # nothing watches gradients, or the last step was too large
            raise Diverged(trainer.global_step, "the last validation loss")
    except (Diverged, NotFinite) as divergence:
        status, step = "diverged", getattr(divergence, "step", None)
        print(divergence, flush=True)
    except Exception as problem:
        traceback.print_exc()
        status, error = "failed", " ".join(f"{type(problem).__name__}: {problem}".split())
    if trainer is not None:
        curves = trainer.logger.curves or curves  # earlier curves are kept if it failed before restoring the checkpoint
        step = max(trainer.global_step, done or 0) if step is None else step
        seconds = next(c.seconds for c in trainer.callbacks if isinstance(c, ResumePoint))
    if trainer is None or trainer.is_global_zero:
        _conclude(folder, trainer, curves, status, step, seconds, error)
    return status


def configuration(folder: Path, cell: dict[str, Any], done: int | None) -> dict[str, Any]:
    """The cell's config in LightningCLI's form, with all paths of the run derived from its folder's current location.

    `done` is the number of steps of the checkpoint from which it resumes; TensorBoard discards later events.
    """
    config = cell["config"]
    logger = {"save_dir": str(folder), "name": "", "version": "", "default_hp_metric": False}
    if done is not None:
        logger["purge_step"] = done + 1
    settings = {
        "trainer.default_root_dir": str(folder),
        "trainer.logger": {"class_path": "implicit_slate.ablation.resume.CurveLogger", "init_args": logger},
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.enable_autolog_hparams": False,  # our hyperparameters are the axes, logged at the end
        "trainer.devices": cell["devices"],
    }
    if cell["devices"] > 1:
        settings["trainer.strategy"] = (config.get("trainer") or {}).get("strategy", "ddp")
    if cell["checkpoint"] is not None:
        settings[cell["checkpoint"]] = str(folder.parent.parent / "pretrain" / LAST)
    return override(with_callback(config, RESUME_POINT), settings)


def _resume_point(folder: Path) -> tuple[int | None, Curves]:
    """The number of steps of the checkpoint to resume from, and the curves so far. If there is no usable checkpoint,
    None and no curves; the files of an earlier attempt are then removed."""
    last = folder / LAST
    if last.exists():
        try:
            checkpoint = read_checkpoint(last)
            print(f"resumed from step {checkpoint['global_step']}", flush=True)
            return checkpoint["global_step"], checkpoint["callbacks"]["ResumePoint"]["curves"]
        except Foreign:
            raise  # do not delete a file that somebody else put there
        except UserError as error:
            print(f"begun again: {error}", flush=True)
    _forget(folder)
    return None, {}


@rank_zero_only
def _forget(folder: Path) -> None:
    for file in (folder / LAST, folder / "curves.csv", *folder.glob("events.out.tfevents.*")):
        file.unlink(missing_ok=True)


def _conclude(
    folder: Path, trainer, curves: Curves, status: str, step: int | None, seconds: float | None, error: str | None
) -> None:
    """Write the cell's results. `result.json` comes last: if it exists, the other files are complete."""
    result = make_result(folder, curves, status, step, seconds, error)
    if trainer is not None and trainer.logger is not None:
        write_curves(folder, curves)
        if status != "failed" and result["axes"]:  # pretraining has no axes
            log_hparams(folder, result)
        flush_events(trainer.logger, folder)
    (folder / "progress.json").unlink(missing_ok=True)
    write_result(folder, result)
