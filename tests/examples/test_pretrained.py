"""The notebook: its code cells, one after the other in one namespace, with a small model in place of its own."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from implicit_slate.cli import main
from implicit_slate.pictures import GAP, TILE, TITLE_HEIGHT
from tests.evaluation import made

NOTEBOOK = Path(__file__).parents[2] / "examples" / "pretrained.ipynb"


@pytest.fixture
def model(tmp_path):
    checkpoint, file = made.run(tmp_path / "run", tmp_path / "no-data"), tmp_path / "small.safetensors"
    assert main(["export", str(checkpoint), str(file)]) == 0
    return file


def test_the_notebook_goes_from_a_model_to_panels_diagnostics_and_a_picture_of_ones_own(model, capsys):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) <= 10 and not any(cell.get("outputs") for cell in cells)
    assert code[0].count('NAME = "sprites-implicit"') == 1
    code[0] = code[0].replace('"sprites-implicit"', repr(str(model)))

    plt.switch_backend("agg")
    names = {}
    try:
        for cell in code:
            exec(cell, names)
        [lines] = [axes.get_lines() for axes in plt.gcf().axes]
    finally:
        plt.close("all")

    assert "3 slots, n = 3" in capsys.readouterr().out
    size = (6 * (TILE + GAP) + GAP, TITLE_HEIGHT + 4 * (TILE + GAP))  # truth, dVAE, reconstruction, three slots
    assert names["panels"].size == names["my_panels"].size == size
    assert len(np.unique(names["small"], axis=0)) > 5 and np.array_equal(names["mine"][0], names["mine"][3])
    assert names["residuals"].shape == (64, 4) and (names["residuals"] > 0).all()
    assert np.array_equal(lines[0].get_ydata(), names["residuals"][:, 0])
    measured = names["diagnostics"]
    assert (measured["spectral norm"] >= measured["spectral radius"] * 0.999).all()  # the norm bounds the radius
    distinct, converged = measured["distinct fixed points"], measured["starts of 8 that converge"]
    assert ((distinct > 0) == (converged > 0)).all() and (distinct <= converged).all() and (converged <= 8).all()
