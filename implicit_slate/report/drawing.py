"""How figures look, and how they get to disk. Matplotlib is used through its objects: nothing global changes."""

import functools
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from implicit_slate.files import write_atomically

COLORS = {"implicit": "#0072B2", "unrolled": "#D55E00"}
OTHER_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; blue and red-orange as in the paper."""

DASHES = {"picard": "-", "broyden": (0, (4, 1.5)), "anderson": (0, (1.2, 1.2))}
"""The forward solver shows in the line, too: a second mark beside the colour."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "svg.hashsalt": "implicit-slate",  # the same numbers make the same file
}
"""Matplotlib's settings for all figures."""


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with `STYLE`, whatever the settings of the notebook."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def make_log(ax, axis: str = "y") -> None:
    """A log axis with plain numbers where they are short, also between the decades if these are few."""
    ax.set(**{f"{axis}scale": "log"})
    low, high = ax.get_ylim() if axis == "y" else ax.get_xlim()
    narrow = high / low < 100
    scale = ax.yaxis if axis == "y" else ax.xaxis
    scale.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8 if axis == "y" else 6))
    scale.set_major_formatter(FuncFormatter(_tick))
    scale.set_minor_formatter(NullFormatter())


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `<name>.png` and `<name>.svg`."""
    with matplotlib.rc_context(STYLE):
        for kind, options in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            write_atomically(folder / f"{name}.{kind}", buffer.getvalue())
            figure.set_layout_engine("none")  # laying out is half the work, and is done once for both


def _tick(value: float, _position: int) -> str:
    return f"{value:,g}" if 0.001 <= value < 1e6 else f"$10^{{{round(np.log10(value))}}}$"
