"""From an experiment file with overrides to what LightningCLI builds, or to one line that says what is wrong."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI

from implicit_slate.ablation.experiment import Experiment, Machine
from implicit_slate.errors import UserError
from implicit_slate.training.config_parser import explain
from implicit_slate.training.experiment_cli import ExperimentCLI


class _Parser(ExperimentCLI):
    """Parses only."""

    def instantiate_classes(self) -> None:
        pass


def check(experiments: Sequence[Experiment], parsed_only: Sequence[Experiment] = ()) -> Machine:
    """Build every experiment as a cell would, and load its data; `UserError` at the first unknown key, bad value or
    missing file. Those of `parsed_only` need files that are made later."""
    for experiment in parsed_only:
        complete(experiment.config(), experiment.origin)
    clis, seen = [], []
    for experiment in experiments:
        config = experiment.config()
        clis.append(build(config, experiment.origin))
        if config.get("data") not in seen and clis[-1].datamodule is not None:
            seen.append(config.get("data"))
            try:
                clis[-1].datamodule.prepare_data()
                clis[-1].datamodule.setup("fit")
            except (UserError, OSError) as error:
                raise UserError(f"{experiment.origin}: {error}") from None
    accelerator = clis[0].trainer.accelerator
    on_cpu = type(accelerator).__name__ == "CPUAccelerator"
    return Machine(0 if on_cpu else accelerator.auto_device_count(), clis[0].trainer.max_steps)


def build(config: Mapping[str, Any], origin: str) -> LightningCLI:
    """Trainer, model and data of a config; `UserError`, one line beginning with `origin`, for what is wrong with it."""
    return _cli(ExperimentCLI, config, origin)


def complete(config: Mapping[str, Any], origin: str) -> str:
    """The YAML text of a config with every default filled in; `UserError` as for `build`."""
    cli = _cli(_Parser, config, origin)
    return cli.parser.dump(cli.config, skip_unset=False)


def _cli(kind: type[ExperimentCLI], config: Mapping[str, Any], origin: str) -> LightningCLI:
    try:
        return kind(run=False, args=copy.deepcopy(dict(config)), save_config_callback=None)
    except Exception as error:  # a mistake in the config, or what a constructor makes of it
        raise UserError(f"{origin}: {explain(error)}") from error
