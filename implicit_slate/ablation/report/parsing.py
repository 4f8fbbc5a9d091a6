"""Result files as Python values, or one line that says which file is damaged."""

import json
from collections.abc import Iterator
from pathlib import Path

from implicit_slate.errors import UserError


def read_json(path: Path, kind: type) -> list | dict:
    """The content of a JSON file that holds a `kind` (`dict` or `list`); UserError naming the file otherwise."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: expected a JSON {'object' if kind is dict else 'list'}")
    return content


def leaves(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of a LightningCLI config, `init_args` left out of the keys as on its command line."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
