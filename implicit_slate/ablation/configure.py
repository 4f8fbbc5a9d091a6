"""From an experiment file with overrides to what LightningCLI builds, or to one line that says what is wrong."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI

from implicit_slate.ablation.experiment import Experiment, Machine, dotted_keys
from implicit_slate.errors import UserError, nearest
from implicit_slate.training.experiment_cli import ExperimentCLI, cause


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
        return kind(
            run=False,
            args=copy.deepcopy(dict(config)),
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False},
        )
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    except Exception as error:
        if (cause := _user_error(error)) is not None:
            raise UserError(f"{origin}: {cause}") from None
        raise UserError(f"{origin}: {_explain(str(error), config)}") from error


def _user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` that jsonargparse wrapped into an error of its own, if that is how it came about."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _explain(message: str, config: Mapping[str, Any]) -> str:
    """jsonargparse's message of many lines as one: the dotted key, and the nearest one that exists or what is wrong."""
    path = re.findall(r'Parser key "([^"]+)":', message)
    if unknown := re.search(r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'", message):
        key = ".".join([*path, *filter(None, unknown.groups())])
        known = _known_keys(config, key)
        return f"unknown key {key!r}{nearest(key, known) if known else ''}"
    return f"{'.'.join(path)}: " * bool(path) + cause(message)


def _known_keys(config: Mapping[str, Any], unknown: str) -> list[str]:
    """The keys beside an unknown one: those of the config without it, all defaults filled in."""
    rest = copy.deepcopy(dict(config))
    *parents, last = unknown.split(".")
    section: Any = rest
    for parent in parents:
        section = section.get("init_args", {}).get(parent) if parent not in section else section[parent]
        if not isinstance(section, dict):
            return []
    (section if last in section else section.get("init_args", {})).pop(last, None)
    if not parents:
        rest.pop(last, None)
    try:
        parsed = _cli(_Parser, rest, "").config.as_dict()
    except UserError:
        return []
    siblings = unknown.rpartition(".")[0]
    keys = list(dotted_keys(parsed))
    return [key for key in keys if key.rpartition(".")[0] == siblings] or keys
