"""The data that a checkpoint is evaluated on: what it was trained on, or what the command line says."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse

from data_modules.base import ImageDataModule, Images, Splits
from implicit_slate.errors import UserError
from implicit_slate.training.config_parser import ConfigParser, explain
from implicit_slate.yaml_files import load_yaml

DataConfig = dict[str, Any]
"""`class_path` and `init_args` of a data module, every option of it, as JSON can hold them."""


class SplitOfData(NamedTuple):
    """A split, and the description from which another process makes the same."""

    images: Images
    config: DataConfig
    split: str


def find_config(checkpoint: Path) -> Path:
    """`config.yaml` of the run that wrote `<run>/checkpoints/<name>.ckpt`; it need not exist."""
    return checkpoint.absolute().parent.parent / "config.yaml"


def describe_data(checkpoint: Path, options: Sequence[str]) -> DataConfig:
    """What the run's `config.yaml` and the options say, complete with every default.

    Args:
        options: `--data CLASS`, `--data FILE` (an experiment file, whose `data` is taken), `--data.KEY VALUE`; options
            change what stands there, a class takes along what it knows.

    Raises:
        UserError: neither says what the data is, or an option is unknown or wrong.
    """
    options, base = list(options), find_config(checkpoint)
    given = next((i for i, option in enumerate(options[:-1]) if _is_file(option, options[i + 1])), None)
    if given is not None:
        _, base = options.pop(given), Path(options.pop(given))
    elif not base.exists() and "--data" not in options:
        raise UserError(f"{checkpoint}: there is no {base}, which would say what data it is of: give --data "
                        "experiments/X.yaml, or --data data_modules.CLEVRMirror --data.root DIR")  # fmt: skip
    start = [f"--data={json.dumps(_data_section(base))}"] if given is not None or base.exists() else []
    try:
        return _parser().parse_args([*start, *options]).data.as_dict()
    except jsonargparse.ArgumentError as error:
        raise UserError(f"evaluate: {explain(error)}") from None


def load_split(config: DataConfig, split: str) -> SplitOfData:
    """Load the data and pick a split. `UserError` names what is missing or wrong, also an empty split."""
    images = getattr(_load(json.dumps(config)), split)
    if not len(images):
        raise UserError(f"{config['class_path']} {config['init_args'].get('root', '')}: the {split} split is empty")
    return SplitOfData(images, config, split)


@lru_cache(maxsize=1)
def _load(config: str) -> Splits:
    """Kept, since the cells of a grid have the same data more often than not."""
    parser = _parser()
    try:
        module: ImageDataModule = parser.instantiate(parser.parse_args([f"--data={config}"])).data
    except ValueError as error:  # raised in a constructor of ours, wrapped by jsonargparse
        raise UserError(f"data: {explain(error)}") from None
    module.prepare_data()
    module.setup("test")
    return module.splits


def _is_file(option: str, value: str) -> bool:
    return option == "--data" and Path(value).suffix in (".yaml", ".yml")


def _data_section(path: Path) -> DataConfig:
    content = load_yaml(path)
    if not isinstance(content.get("data"), dict):
        raise UserError(f"{path}: expected a section 'data' with a class_path, found none")
    return content["data"]


def _parser() -> ConfigParser:
    parser = ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    return parser
