"""What an evaluation shows: panels, and rows of a table."""

import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from implicit_slate.metrics.inception import to_uint8
from implicit_slate.pictures import panel_columns, tile, to_png
from implicit_slate.scores import METRICS


class Panels(NamedTuple):
    """Some images as the model sees them; shapes as in `models.SlotModel`."""

    truth: Tensor
    reconstruction: Tensor
    masks: Tensor
    ceiling: Tensor | None

    def to_png(self) -> bytes:
        columns = panel_columns(self.truth, self.reconstruction, self.masks, self.ceiling)
        return to_png(tile(torch.stack(list(columns.values()), 1), list(columns)))

    def to_npz(self) -> bytes:
        """`truth`, `reconstruction` and, if there is one, `dvae`: uint8 (B, H, W, 3); `masks`: uint8 (B, K, H, W)."""
        arrays = {"truth": self.truth, "reconstruction": self.reconstruction, "dvae": self.ceiling}
        arrays = {name: to_uint8(of.permute(0, 2, 3, 1)) for name, of in arrays.items() if of is not None}
        file = io.BytesIO()
        np.savez_compressed(file, **{name: of.cpu().numpy() for name, of in arrays.items()},
                            masks=to_uint8(self.masks).cpu().numpy())  # fmt: skip
        return file.getvalue()


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A table of evaluations, a row each, and below those that share it the ceiling."""
    names = [name for name in METRICS if any(result["metrics"][name] for result in results)]
    lines = [["", "N", *(METRICS[name].name for name in names)], ["---"] * (len(names) + 2)]
    for result, following in zip_longest(results, results[1:]):
        cells = [_spread(result["metrics"][name]) for name in names]
        lines.append([title(Path(result["checkpoint"])), str(result["images"]), *cells])
        if result["ceiling"] and (following is None or following["ceiling"] != result["ceiling"]):
            lines.append(["the dVAE alone", str(result["images"]), *(_number(result["ceiling"].get(n)) for n in names)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def title(checkpoint: Path) -> str:
    """What to call a checkpoint: the cell of a grid, or the run, that it lies in; else its file."""
    folder = checkpoint.absolute().parent
    return folder.parent.name if folder.name == "checkpoints" else checkpoint.name


def _spread(value: dict[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "–"
    return _number(value["mean"]) + (f" ± {value['std']:.2g}" if value["std"] else "")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
