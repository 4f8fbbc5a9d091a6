"""Build trainer, model and data from a configuration, with errors reported in one line."""

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
    """Only parses and fills in defaults; builds nothing."""

    def instantiate_classes(self) -> None:
        pass


def check(configs: Mapping[str, dict[str, Any]], to_parse: Mapping[str, dict[str, Any]]) -> int:
    """Build every config as a cell would, and load its data.

    Args:
        configs: configs by their origin, which errors name: a file, or a cell in `ablations.yaml`.
        to_parse: configs that need files which do not exist yet, so they are only parsed.

    Returns:
        The number of this machine's accelerators of the kind that the first config would use; 0 for the CPU.

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
    """Build trainer, model and data of a config. Raises `UserError`, with one line that begins with `origin`."""
    try:
        return kind(run=False, args=copy.deepcopy(dict(config)), save_config_callback=None)
    except Exception as error:  # a mistake in the config may raise any exception in a constructor
        raise UserError(f"{origin}: {explain(error)}") from error
