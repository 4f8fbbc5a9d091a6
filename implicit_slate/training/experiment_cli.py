"""Experiment files as LightningCLI reads them, with its errors folded to one line."""

import re

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from implicit_slate.errors import UserError, nearest


class _Parser(LightningArgumentParser):
    def error(self, message, ex=None):  # jsonargparse prints usage and exits; we say what is wrong and where to look
        raise UserError(f"{fold(str(message), self)} (see --help)")


def fold(message: str, parser: LightningArgumentParser) -> str:
    """jsonargparse's message on one line, with the nearest known key where a key is unknown."""
    line = " ".join(line.strip(" -") for line in message.splitlines() if line.strip())
    unknown = re.search(r"(?:Unrecognized arguments:|unrecognized arguments:) --([\w.]+)|[Kk]ey '([\w.]+)' is not", line)
    hint = ""
    if unknown:
        name = unknown[1] or unknown[2]
        known = [action.dest for action in parser._actions if action.dest]
        prefix = name.rpartition(".")[0]
        hint = nearest(name, known) if any(k.startswith(prefix) for k in known) else ""
    return line[:400] + hint


class ExperimentCLI(LightningCLI):
    """A trainer, a model and its data from one YAML file and overrides."""

    def __init__(self, args: list[str] | dict | None = None, run: bool = True, **kwargs):
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0},
            args=args,
            run=run,
            **kwargs,
        )

    def init_parser(self, **kwargs) -> LightningArgumentParser:
        return _Parser(**kwargs)


