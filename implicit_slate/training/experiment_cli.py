"""Experiment files as LightningCLI reads them, with its errors folded to one line."""

import dataclasses
import inspect
import logging
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from implicit_slate.errors import UserError, nearest
from implicit_slate.training.checkpoints import read_checkpoint
from implicit_slate.yaml_files import load_yaml

logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # "Seed set to 0" at every start
warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # we do run it from within Python
warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated")  # between Lightning 2.6 and torch 2.15


class _Parser(LightningArgumentParser):
    def error(self, message, ex=None):
        if not self.exit_on_error:  # the caller wants the exception
            return super().error(message, ex)
        raise UserError(fold(str(message)))


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
        parser = _Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="an experiment file (YAML)")
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # Without `weights_only`: checkpoints are never read otherwise.
        arguments = LightningCLI.subcommands()
        return {name: arguments[name] | {"weights_only"} for name in ("fit", "validate", "test")}

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # raised in a constructor of ours, wrapped by jsonargparse
            raise UserError(fold(str(error))) from error
        model_size = getattr(getattr(self.model, "model", None), "image_size", None)
        data_size = getattr(self.datamodule, "image_size", None)
        if None not in (model_size, data_size) and model_size != data_size:
            raise UserError(f"model.image_size={model_size} but data.image_size={data_size}: they must be the same")

    def _parse_ckpt_path(self) -> None:
        """Lightning would replace the options given by those of the checkpoint, without a word; we keep them."""

    def before_fit(self) -> None:
        self._check_checkpoint()

    before_validate = before_test = before_fit

    def _check_checkpoint(self) -> None:
        """`UserError` if the checkpoint that `--ckpt_path` names is not there, damaged, or of another model."""
        path = self.config[self.subcommand].ckpt_path
        if path is None or path in ("last", "best", "hpc", "registry"):
            return
        state = read_checkpoint(path)["state_dict"]
        for name, value in self.model.state_dict().items():
            if name not in state or state[name].shape != value.shape:
                found = f"of shape {tuple(state[name].shape)}" if name in state else "not there"
                raise UserError(f"{path}: of another model: {name} is {found}, {tuple(value.shape)} expected")


def _nulls_as_mappings(args: list[str]) -> list[str]:
    """`--model.optimization.clip_norm null` as `--model.optimization={"clip_norm": null}`.

    jsonargparse 4.53 parses such a nested value twice, the second time from the first one's `str()`, where null has
    become the word None; a mapping gets through, and leaves its neighbours as they are.
    """
    joined = re.sub(r"(--[\w.]+)\0null(?=\0|$)", r"\1=null", "\0".join(args))
    rewritten = re.sub(r"(--\w+(?:\.\w+)+)\.(\w+)=null(?=\0|$)", r'\1={"\2": null}', joined)
    return rewritten.split("\0") if args else args


def fold(message: str) -> str:
    """jsonargparse's message of many lines as the one that tells, with the nearest known key for an unknown one."""
    unknown = re.search(
        r"[Oo]ption '([\w.]+)' is not accepted|not accept option '([\w.]+)'|nrecognized arguments: --([\w.]+)", message
    )
    if unknown:
        name = next(filter(None, unknown.groups()))
        return f"unknown option {name!r}{nearest(name, _options())} (see --help)"
    override = re.search(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)", message)  # as the command line gave it
    return (f"{override[1]}={override[2]}: " if override else "") + cause(message) + " (see --help)"


def cause(message: str) -> str:
    """What is wrong with a value, from jsonargparse's account of all that it tried."""
    noise = ("Parser key", "Does not validate", "Subtypes:", "Errors:", "Problem with given class_path", "Given value")
    lines = [line.strip().removeprefix("- ").removesuffix("(see --help)").strip() for line in message.splitlines()]
    facts = [line for line in lines if line and not line.startswith(noise)]
    if len(facts) > 1:  # that the value is not null either needs no saying
        facts = [fact for fact in facts if fact != "Expected a <class 'NoneType'>"]
    given = [line for line in lines if line.startswith("Given value:") and "(" not in line and "{" not in line]
    text = "; ".join([*facts[:2], *given[:1]]) or " ".join(message.split())
    return re.sub(r"<class '(?:builtins\.)?([^']+)'>|typing\.", lambda match: match[1] or "", " ".join(text.split()))


def _options() -> list[str]:
    """Every option of our modules as it is spelled behind `model.`, and the trainer's in full."""
    from implicit_slate.models import SLATE, PropertyPredictor, SpatialBroadcast
    from implicit_slate.training import DVAEModule, Optimization, PropertyModule, SLATEModule, SpatialBroadcastModule

    classes = (
        SLATEModule, SLATE, DVAEModule, SpatialBroadcastModule, SpatialBroadcast, PropertyModule, PropertyPredictor,
    )  # fmt: skip
    parameters = [parameter for kind in classes for parameter in inspect.signature(kind).parameters.values()]
    options = {parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD}
    options |= {f"optimization.{field.name}" for field in dataclasses.fields(Optimization)}
    return sorted(options) + [f"trainer.{name}" for name in inspect.signature(L.Trainer).parameters]


def _run(subcommand: str, argv: list[str]) -> int:
    """`implicit-slate fit`, `validate` or `test`; returns the exit status."""
    from callbacks import Diverged

    for flag, value in zip(argv, argv[1:], strict=False):
        if flag in ("-c", "--config"):
            load_yaml(Path(value))  # for its errors, which name file and line
    try:
        ExperimentCLI(args=[subcommand, *argv])
    except Diverged as error:
        print(f"implicit-slate: {error}", file=sys.stderr)
        return 1
    return 0


fit, validate, test = (partial(_run, name) for name in ("fit", "validate", "test"))
