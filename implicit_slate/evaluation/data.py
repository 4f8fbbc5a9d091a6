"""The data on which a checkpoint is evaluated: that of its training, or that given on the command line."""

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
"""`class_path` and `init_args` of a data module, with all its options, as JSON-compatible values."""


def describe_data(checkpoint: Path, given: str | None, options: Sequence[str]) -> DataConfig:
    """The data configuration from the run's `config.yaml` and the command line, with all defaults filled in.

    Args:
        checkpoint: `<run>/checkpoints/<name>.ckpt`, where `<run>/config.yaml` may be missing; not used if `given` is an
            experiment file.
        given: a class, which keeps those options of the run's data that it has, too; or an experiment file, whose
            `data` is used.
        options: `--data.KEY VALUE` each; they override everything else.

    Raises:
        UserError: no data is specified anywhere, or an option is unknown or wrong.
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
    """Parse options `--data CLASS` and `--data.KEY VALUE`. Raises `UserError` for one that is unknown or wrong."""
    try:
        return _parser().parse_args(list(arguments)).data.as_dict()
    except ArgumentError as error:
        raise explain(error) from None


def load_splits(data: DataConfig) -> Splits:
    """Load the data. The last result is cached, because the cells of a grid usually share their data.

    Raises:
        UserError: files or settings are missing or wrong; names them.
    """
    return _load(json.dumps(data))


def load_images(data: DataConfig, split: str) -> Images:
    """The images of the `train`, `val` or `test` split. Also raises `UserError` if it is empty, as COCO's test split
    can be."""
    images = getattr(load_splits(data), split)
    if not len(images):
        raise UserError(f"{describe_split(data, split)} is empty")
    return images


def check_size(model: SlotModel, path: Path, images: Images, data: DataConfig) -> None:
    """Raise `UserError` if the images do not have the image size of the model at `path`."""
    if (size := images[[0]]["image"].shape[-1]) != model.image_size:
        raise UserError(f"{path}: a model of images of {model.image_size} pixels; {data['class_path']} has {size}: "
                        f"--data.image_size {model.image_size}")  # fmt: skip


def describe_split(data: DataConfig, split: str) -> str:
    """A split's name in messages."""
    return f"the {split} split of {data['class_path']} ({data['init_args'].get('root', 'embedded')})"


@lru_cache(maxsize=1)
def _load(config: str) -> Splits:
    parser = _parser()
    try:
        module: ImageDataModule = parser.instantiate(parser.parse_args([f"--data={config}"])).data
    except ValueError as error:  # from a constructor of a data module, wrapped by jsonargparse
        raise UserError(f"data: {explain(error)}") from None
    module.prepare_data()
    module.setup("test")
    return module.splits


def _parser() -> ConfigParser:
    parser = ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    return parser
