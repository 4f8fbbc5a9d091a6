"""YAML as people expect it, with errors that say where; experiments as nested mappings in LightningCLI's form."""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from implicit_slate.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML in which `on`, `off`, `yes` and `no` are strings and `5e-3` is a number, as YAML 1.2 has it."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        found = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in found:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                found.add((key.tag, key.value))
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for kind in ("binary", "set", "omap", "pairs"):  # no such things in experiments, nor in JSON
    _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", yaml.SafeLoader.construct_undefined)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false|True|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


def load_yaml(path: Path) -> dict:
    """The mapping in a YAML file; `UserError` naming file and line where it is missing, malformed or no mapping."""
    try:
        content = yaml.load(Path(path).read_text(), _Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is not a text file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: malformed YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: malformed YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    for problem in _misplaced(content):
        raise UserError(f"{path}: {problem}")
    return content


def _misplaced(section: Any, prefix: str = "") -> Iterator[str]:
    """What in an experiment is not where LightningCLI looks for it. That would name other keys, or drop the value."""
    if isinstance(section, list):
        for item in section:
            yield from _misplaced(item, prefix)
    if not isinstance(section, Mapping):
        return
    for key, value in section.items():
        name = f"{prefix}{key}"
        if "class_path" in section and key not in ("class_path", "init_args", "dict_kwargs"):
            yield f"{name}: expected below {prefix}init_args"
        if key == "class_path" and not isinstance(value, str):
            yield f"{name}={'null' if value is None else value}: expected the name of a class"
        if not isinstance(value, Mapping) and (key == "init_args" or (name == "trainer" and value is not None)):
            yield f"{name}={'null' if value is None else value}: expected a group of settings"
        yield from _misplaced(value, f"{name}.")


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested mappings; `init_args` is left out of keys, as on LightningCLI's command line."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or holds it; `init_args` in them does not count."""
    key, other = (f"{name}.".replace(".init_args.", ".") for name in (key, other))
    return key.startswith(other) or other.startswith(key)


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


def with_callback(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """`config` with the callback of the class `kind` after those that it has: one, several, or that among them."""
    given = (config.get("trainer") or {}).get("callbacks") or []
    given = given if isinstance(given, list) else [given]
    kinds = [entry.get("class_path") if isinstance(entry, Mapping) else entry for entry in given]
    return override(config, {"trainer.callbacks": [*given, *[{"class_path": kind}] * (kind not in kinds)]})


def _arguments(section: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping that holds `key`: the section itself, or the `init_args` of a section that names a class."""
    if "class_path" in section and key not in ("class_path", "init_args"):
        if not isinstance(section.get("init_args"), dict):
            section["init_args"] = {}
        return section["init_args"]
    return section
