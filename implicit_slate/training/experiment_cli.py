"""The commands `fit`, `validate` and `test`: LightningCLI for experiment files, with errors reported in one line."""

import contextlib
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentError, set_parsing_settings
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import data_modules
from callbacks.divergence import Diverged, FirstEvaluation
from implicit_slate.allowed import Seed
from implicit_slate.errors import TrainingError, UserError, explaining_memory
from implicit_slate.fixed_point import NotFinite
from implicit_slate.models.portable import load_weights
from implicit_slate.processes import expecting_children
from implicit_slate.training.base import TrainingModule
from implicit_slate.training.checkpoints import read_checkpoint
from implicit_slate.training.config_parser import BadKey, ConfigParser, explain
from implicit_slate.training.precision import fastest_precision
from implicit_slate.training.trainer import Trainer
from implicit_slate.yaml_files import experiment_files, leaves, load_yaml, overlap

logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # hides "Seed set to 0"
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.getMessage())
warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # here the CLI is called from Python on purpose
warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated")  # between Lightning 2.6 and torch 2.15
set_parsing_settings(docstring_parse_attribute_docstrings=True)  # `fit --model.help` explains the optimiser's settings

LIGHTNING_KEY = "pytorch-lightning_version"
"""Without it, Lightning cannot continue from a checkpoint."""


class ExperimentCLI(LightningCLI):
    """Build trainer, model and data from experiment files and overrides; raises `UserError` for mistakes in them."""

    def __init__(self, args: list[str] | dict[str, Any] | None = None, run: bool = True, **options):
        self._args = _nulls_as_mappings(args) if isinstance(args, list) else args
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},  # each run has its own folder
            # Our data modules distribute their batches over processes themselves, as a function of the step.
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0},
            args=self._args,
            run=run,
            **options,
        )

    def init_parser(self, **kwargs) -> LightningArgumentParser:
        parser = ConfigParser(allow_abbrev=False, **kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="an experiment file (YAML)")
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        help = "of weights, data and noise"
        parser.add_argument("--seed_everything", type=Seed, default=self.seed_everything_default, help=help)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # `weights_only` is no option, because checkpoints are always read with it.
        arguments = LightningCLI.subcommands()
        return {name: arguments[name] | {"weights_only"} for name in ("fit", "validate", "test")}

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | dict[str, Any] | None) -> None:
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise self._located(explain(error)) from error
        trainer = self._settings.trainer
        if trainer.precision is None:
            trainer.precision = fastest_precision(trainer.accelerator)

    @property
    def _settings(self) -> Any:
        """The configuration; that of the subcommand, if there is one."""
        return self.config.get(self.config.get("subcommand"), self.config)

    def _named(self, problem: BadKey) -> UserError:
        """A constructor's error about `name=value`, with `name` replaced by its dotted key if there is only one."""
        name = re.match(r"\w+(?==)", str(problem))
        keys = [key for key, _ in leaves(self._settings.as_dict()) if name and key.rpartition(".")[2] == name[0]]
        if len(keys) != 1:
            return problem
        return self._located(BadKey(f"{keys[0]}{str(problem).removeprefix(name[0])}", keys[0]))

    def _located(self, problem: BadKey) -> UserError:
        """The problem, prefixed with the experiment file that causes it, unless a command-line option does."""
        args = self._args
        if not isinstance(args, list) or any(overlap(arg.partition("=")[0], f"--{problem.key}") for arg in args):
            return problem
        for file in reversed(experiment_files(args)):
            if any(overlap(key, problem.key) for key, _ in leaves(load_yaml(file))):
                return UserError(f"{file}: {problem}")
        return problem

    def instantiate_classes(self) -> None:
        try:
            with explaining_memory():
                super().instantiate_classes()
        except (ValueError, TypeError, RuntimeError, OverflowError, MisconfigurationException) as error:
            raise self._named(explain(error)) from error
        model_size = getattr(getattr(self.model, "model", None), "image_size", None)
        data_size = getattr(self.datamodule, "image_size", None)
        if None not in (model_size, data_size) and model_size != data_size:
            raise UserError(f"model.image_size={model_size} but data.image_size={data_size}: they must be the same")
        ours = isinstance(self.datamodule, data_modules.ImageDataModule)
        epochs, most, batches = self.trainer.max_epochs, self.trainer.max_steps, self.trainer.limit_train_batches
        is_timed = any(isinstance(callback, Timer) for callback in self.trainer.callbacks)
        if ours and epochs != -1 and most == -1 and not (is_timed or isinstance(batches, int)):
            ends = "epochs of our data do not end; give max_steps, max_time or limit_train_batches"
            raise UserError(f"trainer.max_epochs={epochs}: {ends}")
        channels = self.model.hparams.get("image_channels", 3)
        if channels != 3 and ours:
            raise UserError(f"model.image_channels={channels}: the images of {type(self.datamodule).__name__} have 3")

    def _parse_ckpt_path(self) -> None:
        """Lightning would silently replace the given options by those of the checkpoint; this keeps them."""

    def before_instantiate_classes(self) -> None:
        """Raise `UserError` if the checkpoint of `--ckpt_path` is missing or damaged, or required but not given."""
        self._checkpoint = self._settings.get("ckpt_path")
        if self._checkpoint is None and self.config.get("subcommand") in ("validate", "test"):
            raise UserError(f"{self.config.subcommand}: needs --ckpt_path, the checkpoint to measure")
        self._trained = read_checkpoint(self._checkpoint) if self._checkpoint is not None else None

    def before_validate(self) -> None:
        """Raise `UserError` if that checkpoint is of another model."""
        if self._trained is not None:
            load_weights(self.model, self._trained["state_dict"], self._checkpoint)

    before_test = before_validate

    def before_fit(self) -> None:
        """As `before_validate`; also raise `UserError` if the checkpoint's optimiser trains other parameters than this
        model's."""
        self.before_validate()
        if self._trained is None or not isinstance(self.model, TrainingModule):
            return
        if "optimizer_states" in self._trained and LIGHTNING_KEY not in self._trained:
            raise UserError(f"{self._checkpoint}: not a checkpoint of Lightning: it holds no {LIGHTNING_KEY}")
        here = {name: len(parameters) for name, parameters in self.model.parameter_groups().items()}
        for optimizer in self._trained.get("optimizer_states", ()):
            there = {group["name"]: len(group["params"]) for group in optimizer["param_groups"]}
            if there != here:
                raise UserError(
                    f"{self._checkpoint}: a training of {_count(there)}; here are {_count(here)}, "
                    "so the gradient mode or the dvae_checkpoint is not the same"
                )

    def fit(self, **options) -> None:
        if self._trained is not None and "optimizer_states" not in self._trained:
            rank_zero_info(f"{self._checkpoint}: weights only; training begins with them, at step 0")
            options["ckpt_path"] = None
        written = self._folder() / "config.yaml"  # by LightningCLI; without a logger, where experiment files may be
        files = experiment_files(self._args) if isinstance(self._args, list) else []
        if any(file.resolve() == written.resolve() for file in files):
            raise UserError(f"{written}: the run would overwrite it; give another trainer.default_root_dir or logger")
        self._run(self.trainer.fit, options)

    def validate(self, **options) -> None:
        self._run(self.trainer.validate, options)

    def test(self, **options) -> None:
        self._run(self.trainer.test, options)

    def _folder(self) -> Path:
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def _run(self, work: Callable, options: dict[str, Any]) -> None:
        """Call `work`. If it fails because of bad input before the first step, the folders it made are removed."""
        self._trained = None  # frees memory; Lightning reads the checkpoint again
        folder = self._folder()
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            with explaining_memory(), expecting_children():
                work(weights_only=True, **options)  # runs no code from a checkpoint
        except NotFinite as error:
            raise Diverged(self.trainer.global_step, FirstEvaluation.watched) from error
        except RuntimeError as error:
            if not str(error).startswith("Early stopping conditioned on metric"):
                raise
            raise UserError(f"trainer.callbacks: {' '.join(str(error).split())}") from error
        except (UserError, OSError, MisconfigurationException) as error:
            if new and self.trainer.global_step == 0:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # not empty: another run has started there
                    for parent in new[1:]:
                        parent.rmdir()
            raise explain(error) if isinstance(error, MisconfigurationException) else error from error


def _count(groups: dict[str, int]) -> str:
    return " and ".join(f"{count} tensors of {name!r}" for name, count in groups.items())


def _nulls_as_mappings(args: list[str]) -> list[str]:
    """Rewrite `--model.optimization.clip_norm null` as `--model.optimization={"clip_norm": null}`.

    jsonargparse 4.53 parses such a nested value twice, the second time from the `str()` of the first result, where null
    has become the word None. A mapping is parsed correctly, and does not change the group's other settings.
    """
    joined = re.sub(r"(--[\w.]+)\0null(?=\0|$)", r"\1=null", "\0".join(args))
    rewritten = re.sub(r"(--\w+(?:\.\w+)+)\.(\w+)=null(?=\0|$)", r'\1={"\2": null}', joined)
    return rewritten.split("\0") if args else args


def run(command: str, argv: list[str]) -> int:
    """Run `implicit-slate fit`, `validate` or `test`; returns the exit status."""
    for file in experiment_files(argv):
        load_yaml(file)  # its error messages name file and line
    try:
        ExperimentCLI(args=[command, *argv], save_config_callback=SaveConfigCallback if command == "fit" else None)
    except TrainingError as error:
        print(f"implicit-slate: {error}", file=sys.stderr)
        return 1
    return 0
