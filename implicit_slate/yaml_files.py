"""YAML files, with errors that name file and line; and experiments as nested mappings in LightningCLI's form."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from implicit_slate.errors import UserError


class _Loader(yaml.SafeLoader):
    """A loader for which `on`, `off`, `yes` and `no` are strings and `5e-3` is a number, as in YAML 1.2."""

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
for kind in ("binary", "set", "omap", "pairs"):  # types that experiments do not need and JSON does not have
    _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", yaml.SafeLoader.construct_undefined)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false|True|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


def load_yaml(path: Path) -> dict:
    """The mapping in a YAML file. If it is missing, malformed or no mapping, `UserError` names file and line."""
    try:
        content = yaml.load(Path(path).read_text(), _Loader)
        problem = next(_misplaced(content), None)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is not a text file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: malformed YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:  # such as a number of more digits than Python reads
        raise UserError(f"{path}: malformed YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: malformed YAML: a section contains itself, or too many others") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    if problem is not None:
        raise UserError(f"{path}: {problem}")
    return content


def experiment_files(argv: Sequence[str]) -> list[Path]:
    """The files given by `-c` and `--config`."""
    return [Path(name) for name in re.findall(r"(?:^|\0)(?:-c|--config)[\0=]([^\0]+)", "\0".join(argv))]


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
    """(dotted key, value) for all values of nested mappings; keys omit `init_args`, as in LightningCLI's options."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def overlap(key: str, other: str) -> bool:
    """Whether two dotted keys are equal, or one contains the other; `init_args` in them is ignored."""
    key, other = (f"{name}.".replace(".init_args.", ".") for name in (key, other))
    return key.startswith(other) or other.startswith(key)


def override(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` with the values at all dotted keys of `overrides` replaced.

    As on LightningCLI's command line, `model.gradient` means `model.init_args.gradient` if `model` has a `class_path`.
    Missing mappings are created.
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
    """A copy of `config` with a callback of class `kind` appended, unless it already has one."""
    given = (config.get("trainer") or {}).get("callbacks") or []
    given = given if isinstance(given, list) else [given]
    kinds = [entry.get("class_path") if isinstance(entry, Mapping) else entry for entry in given]
    return override(config, {"trainer.callbacks": [*given, *[{"class_path": kind}] * (kind not in kinds)]})


def _arguments(section: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping that contains `key`: the section itself, or its `init_args` if it has a `class_path`."""
    if "class_path" in section and key not in ("class_path", "init_args"):
        if not isinstance(section.get("init_args"), dict):
            section["init_args"] = {}
        return section["init_args"]
    return section
