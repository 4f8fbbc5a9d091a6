"""The commit and the versions with which a result was made."""

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from platform import python_version


@cache
def revision() -> str | None:
    """The commit of the source tree, with `-dirty` if files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@cache
def versions() -> dict[str, str]:
    names = ("implicit-slate", "torch", "lightning")
    return {"python": python_version()} | {name: metadata.version(name) for name in names}
