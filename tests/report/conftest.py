import itertools
from pathlib import Path

import pytest

from implicit_slate.report.run import METHODS
from tests.report.made import TRICKS, Grid, write_pictures


@pytest.fixture
def grid(tmp_path) -> Grid:
    """A grid without cells in the test's folder."""
    return Grid(tmp_path)


@pytest.fixture(scope="session")
def tricks(tmp_path_factory) -> Path:
    """A finished grid of the tricks, with its report; one unrolled cell has diverged. With all tricks, both modes have
    pictures of two steps."""
    description = "an accelerated stress setting:\n  learning rate 50 times the <public> default (assumed)"
    grid = Grid(tmp_path_factory.mktemp("runs") / "demo", description)
    for axes, gradient, seed in itertools.product(TRICKS, ("unrolled", "implicit"), (0, 1)):
        loss = (80.0 if gradient == "implicit" else 100.0) + seed
        diverged = (gradient, axes["clip"], seed) == ("unrolled", "off", 1)
        ended = {"status": "diverged", "steps": (0, 10, 20)} if diverged else {}
        folder = grid.cell(gradient, seed, loss=loss, **ended, **axes)
        if set(axes.values()) == {"on"}:
            write_pictures(folder, steps=(0, 40))
    grid.report()
    return grid.path


@pytest.fixture(scope="session")
def solvers(tmp_path_factory) -> Path:
    """A finished grid of the paper's variants, with its report."""
    grid = Grid(tmp_path_factory.mktemp("runs") / "solvers")
    losses = {"unrolled": 130.0, "IN": 13.0, "IB": 40.0, "BN": 14.0, "BB": 12.0}
    for (name, loss), seed in itertools.product(losses.items(), (0, 1)):
        grid.cell(METHODS[name].gradient, seed, loss=loss + seed, solver=METHODS[name].solver)
    grid.report()
    return grid.path
