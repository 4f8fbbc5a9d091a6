"""Overrides of an experiment file: plain nested mappings in LightningCLI's form, before anything is imported."""

import copy
from collections.abc import Mapping
from typing import Any


def override(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the value at every dotted key replaced; `config` itself stays as it is.

    As on LightningCLI's command line, `model.gradient` reaches through `class_path`/`init_args`:
    it means `model.init_args.gradient`. A mapping on the way that is not there is made.
    """
    result = copy.deepcopy(dict(config))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        section = result
        for parent in parents:
            section = _arguments(section, parent)
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        _arguments(section, last)[last] = copy.deepcopy(value)
    return result


def _arguments(section: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping that holds `key`: the section itself, or the `init_args` of a section that names a class."""
    if "class_path" in section and key not in ("class_path", "init_args"):
        if not isinstance(section.get("init_args"), dict):
            section["init_args"] = {}
        return section["init_args"]
    return section
