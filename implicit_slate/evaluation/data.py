"""The data that a checkpoint is evaluated on: what it was trained on, or what the command line says."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from data_modules.base import ImageDataModule, Images, Splits
from implicit_slate.errors import UserError
from implicit_slate.models import SlotModel
from implicit_slate.run_folder import run_of
from implicit_slate.training.config_parser import ConfigParser, explain
from implicit_slate.yaml_files import load_yaml

DataConfig = dict[str, Any]
"""`class_path` and `init_args` of a data module, every option of it, as JSON can hold them."""


def describe_data(checkpoint: Path, given: str | None, options: Sequence[str]) -> DataConfig:
    """What the run's `config.yaml` and the command line say, complete with every default.

    Args:
        checkpoint: `<run>/checkpoints/<name>.ckpt`; `<run>/config.yaml` need not exist. If `given` is an experiment
            file, it does not matter.
        given: a class, which takes over the options that it knows, or an experiment file, whose `data` is taken.
        options: `--data.KEY VALUE` each, which override the rest.

    Raises:
        UserError: nothing says what the data is, or an option is unknown or wrong.
    """
    arguments, run = list(options), run_of(checkpoint)
    base = None if run is None or not (run / "config.yaml").exists() else run / "config.yaml"
    if given and given.endswith((".yaml", ".yml")):
        base = Path(given)
    elif given:
        arguments = ["--data", given, *arguments]
    elif base is None:
        raise UserError(f"{checkpoint}: its run has no config.yaml that says which data it was trained on: give --data "
                        "experiments/X.yaml, or --data data_modules.CLEVRMirror --data.root DIR")  # fmt: skip
    if base is not None:
        content = load_yaml(base)
        if not isinstance(content.get("data"), dict) or not isinstance(content["data"].get("class_path"), str):
            raise UserError(f"{base}: expected a section 'data' with a class_path, found none")
        arguments = [f"--data={json.dumps(content['data'])}", *arguments]
    return parse_data(arguments)


def parse_data(arguments: Sequence[str]) -> DataConfig:
    """What options say, `--data CLASS` and `--data.KEY VALUE` each. `UserError` for one that is unknown or wrong."""
    try:
        return _parser().parse_args(list(arguments)).data.as_dict()
    except ArgumentError as error:
        raise explain(error) from None


def load_splits(data: DataConfig) -> Splits:
    """The last data is kept, since the cells of a grid mostly have the same.

    Raises:
        UserError: names what is missing or wrong.
    """
    return _load(json.dumps(data))


def load_images(data: DataConfig, split: str) -> Images:
    """Of the `train`, `val` or `test` split. `UserError` also if it is empty, as that of a COCO without test images."""
    images = getattr(load_splits(data), split)
    if not len(images):
        raise UserError(f"{describe_split(data, split)} is empty")
    return images


def check_size(model: SlotModel, path: Path, images: Images, data: DataConfig) -> None:
    """`UserError` if the images are not as large as those that the model at `path` is of."""
    if (size := images[[0]]["image"].shape[-1]) != model.image_size:
        raise UserError(f"{path}: a model of images of {model.image_size} pixels; {data['class_path']} has {size}: "
                        f"--data.image_size {model.image_size}")  # fmt: skip


def describe_split(data: DataConfig, split: str) -> str:
    """As messages name it."""
    return f"the {split} split of {data['class_path']} ({data['init_args'].get('root', 'embedded')})"


@lru_cache(maxsize=1)
def _load(config: str) -> Splits:
    parser = _parser()
    try:
        module: ImageDataModule = parser.instantiate(parser.parse_args([f"--data={config}"])).data
    except ValueError as error:  # raised in a constructor of ours, wrapped by jsonargparse
        raise UserError(f"data: {explain(error)}") from None
    module.prepare_data()
    module.setup("test")
    return module.splits


def _parser() -> ConfigParser:
    parser = ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    return parser
