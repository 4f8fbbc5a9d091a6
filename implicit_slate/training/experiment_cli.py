"""The commands `fit`, `validate` and `test`: experiment files as LightningCLI reads them, errors as one line."""

import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import callbacks
from implicit_slate.errors import UserError
from implicit_slate.models.portable import load_weights
from implicit_slate.training.checkpoints import read_checkpoint
from implicit_slate.training.config_parser import ConfigParser, explain
from implicit_slate.training.precision import fastest_precision
from implicit_slate.yaml_files import load_yaml

logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # "Seed set to 0" at every start
warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # we do run it from within Python
warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated")  # between Lightning 2.6 and torch 2.15


class ExperimentCLI(LightningCLI):
    """A trainer, a model and its data from one YAML file and overrides; `UserError` for what is wrong in them."""

    def __init__(self, args: list[str] | dict[str, Any] | None = None, run: bool = True, **options):
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},  # a run's own folder, made for it
            # Our data modules split their batches over processes themselves, as a function of the step.
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0},
            args=_nulls_as_mappings(args) if isinstance(args, list) else args,
            run=run,
            **options,
        )

    def init_parser(self, **kwargs) -> LightningArgumentParser:
        parser = ConfigParser(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="an experiment file (YAML)")
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # Without `weights_only`: checkpoints are never read otherwise.
        arguments = LightningCLI.subcommands()
        return {name: arguments[name] | {"weights_only"} for name in ("fit", "validate", "test")}

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | dict[str, Any] | None) -> None:
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(explain(error)) from error
        trainer = self.config.get(self.config.get("subcommand"), self.config).trainer
        if trainer.precision is None:
            trainer.precision = fastest_precision(trainer.accelerator)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:  # what constructors raise
            raise UserError(explain(error)) from error
        model_size = getattr(getattr(self.model, "model", None), "image_size", None)
        data_size = getattr(self.datamodule, "image_size", None)
        if None not in (model_size, data_size) and model_size != data_size:
            raise UserError(f"model.image_size={model_size} but data.image_size={data_size}: they must be the same")

    def _parse_ckpt_path(self) -> None:
        """Lightning would replace the options given by those of the checkpoint, without a word; we keep them."""

    def before_fit(self) -> None:
        """`UserError` if the checkpoint that `--ckpt_path` names is not there, damaged, or of another model."""
        path = self.config[self.subcommand].ckpt_path
        if path not in (None, "last", "best", "hpc", "registry"):
            load_weights(self.model, read_checkpoint(path)["state_dict"], path)

    before_validate = before_test = before_fit


def _nulls_as_mappings(args: list[str]) -> list[str]:
    """`--model.optimization.clip_norm null` as `--model.optimization={"clip_norm": null}`.

    jsonargparse 4.53 parses such a nested value twice, the second time from the first one's `str()`, where null has
    become the word None; a mapping gets through, and leaves its neighbours as they are.
    """
    joined = re.sub(r"(--[\w.]+)\0null(?=\0|$)", r"\1=null", "\0".join(args))
    rewritten = re.sub(r"(--\w+(?:\.\w+)+)\.(\w+)=null(?=\0|$)", r'\1={"\2": null}', joined)
    return rewritten.split("\0") if args else args


def run(command: str, argv: list[str]) -> int:
    """`implicit-slate fit`, `validate` or `test`; returns the exit status."""
    for flag, value in zip(argv, argv[1:], strict=False):
        if flag in ("-c", "--config"):
            load_yaml(Path(value))  # for its errors, which name file and line
    try:
        ExperimentCLI(args=[command, *argv])
    except callbacks.Diverged as error:
        print(f"implicit-slate: {error}", file=sys.stderr)
        return 1
    return 0
