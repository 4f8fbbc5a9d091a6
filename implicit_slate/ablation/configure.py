"""From an experiment file with overrides to what LightningCLI builds, or to one line that says what is wrong."""

import copy
from collections.abc import Mapping
from typing import Any

from implicit_slate.errors import UserError
from implicit_slate.training.config_parser import explain
from implicit_slate.training.experiment_cli import ExperimentCLI
from implicit_slate.yaml_files import with_callback

RESUME_POINT = "implicit_slate.ablation.resume.ResumePoint"
"""The callback that every cell has."""


class Parser(ExperimentCLI):
    """Parses only: fills in every default, and builds nothing."""

    def instantiate_classes(self) -> None:
        pass


def check(configs: Mapping[str, dict[str, Any]], to_parse: Mapping[str, dict[str, Any]]) -> int:
    """Build every config as a cell would, and load its data; on how many accelerators of this machine (0: on the CPU)
    the first of them would train.

    Args:
        configs: by where a user can correct each, as a file, or an axis and its value in `ablations.yaml`.
        to_parse: likewise, those that need files which are made later.

    Raises:
        UserError: at the first unknown key, bad value or missing file.
    """
    for origin, config in to_parse.items():
        build(with_callback(config, RESUME_POINT), origin, Parser)
    accelerators, seen = [], []
    for origin, config in configs.items():
        cli = build(with_callback(config, RESUME_POINT), origin)
        accelerators.append(cli.trainer.accelerator)
        if config.get("data") not in seen and cli.datamodule is not None:
            seen.append(config.get("data"))
            try:
                cli.datamodule.prepare_data()
                cli.datamodule.setup("fit")
            except (UserError, OSError) as error:
                raise UserError(f"{origin}: {error}") from None
    on_cpu = type(accelerators[0]).__name__ == "CPUAccelerator"
    return 0 if on_cpu else accelerators[0].auto_device_count()


def build(config: Mapping[str, Any], origin: str, kind: type[ExperimentCLI] = ExperimentCLI) -> ExperimentCLI:
    """Trainer, model and data of a config; `UserError`, one line beginning with `origin`, for what is wrong with it."""
    try:
        return kind(run=False, args=copy.deepcopy(dict(config)), save_config_callback=None)
    except Exception as error:  # a mistake in the config, or what a constructor makes of it
        raise UserError(f"{origin}: {explain(error)}") from error
