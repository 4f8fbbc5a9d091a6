"""A cell's `result.json`: what came of it, computed from its curves and the way it ended."""

import json
from pathlib import Path
from typing import Any

from implicit_slate.files import read_json, write_atomically
from implicit_slate.measures import summarise
from implicit_slate.provenance import revision, versions


def make_result(
    folder: Path, curves, status: str, step: int | None = None, seconds: float | None = None, error: str | None = None
) -> dict[str, Any]:
    """The content of `result.json` of the cell prepared in `folder`.

    Args:
        curves: tag to step to value, in the order of the steps.
        status: `complete`, `diverged` or `failed`.
        step: training steps done.
        seconds: training time of all sessions.
        error: why it failed, in one line.
    """
    cell = read_json(folder / "cell.json")
    result = {
        "cell": cell["cell"],
        "status": status,
        "axes": cell["axes"],
        "step": step,
        "measures": summarise(curves),
        "seconds": seconds,
        "steps_per_second": step / seconds if step and seconds else None,
        "git": revision(),
        "versions": versions(),
    }
    return result if error is None else result | {"error": error}


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write `result.json`, which says that the cell is done: to be called last."""
    write_atomically(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
