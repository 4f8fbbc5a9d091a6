"""The notebooks, run cell by cell in a kernel, as in Jupyter; all use the same kernel, reset in between."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra 'notebook'")

FOLDER = Path(__file__).parents[1] / "notebooks"
CLAIMS = {
    "first_run": """
        assert all(len(values) == 40 and sum(values[-5:]) < 0.8 * sum(values[:5]) for values in losses.values())
        assert views.masks.shape == (4, 5, 32, 32) and small.shape == (32, 32, 3)
    """,
    "fixed_points": """
        assert solution.residual.max() < 1e-5
        assert torch.allclose(torch.tanh(solution.z @ W.T + x), solution.z, atol=1e-4)
        assert agreements[0].cosine > 0.999 > agreements[2].cosine > 0.5
        assert residuals.shape == (64, 4) and float(residuals[-1].min()) < 1e-4
        assert (diagnostics["spectral norm"] > 0.999 * diagnostics["spectral radius"]).all()
        assert (basins.distinct <= basins.converged).all() and (basins.converged > 0).all()
    """,
    "reading_a_grid": """
        assert len(cells) == 16 and (cells.status == "complete").all() and ari.shape[1] == 4
        assert (loss["unrolled"] > loss["implicit"]).all() and judgement.sentence
    """,
}


@pytest.fixture(scope="module")
def kernel():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(FOLDER), env=os.environ | {"OMP_NUM_THREADS": "1"})
    yield manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", CLAIMS)
def test_notebook(name, kernel):
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    shown = [kinds_of_output(cell) for cell in notebook.cells]
    claims = "\n".join(line.strip() for line in CLAIMS[name].splitlines())
    notebook.cells += [nbformat.v4.new_code_cell(claims), nbformat.v4.new_code_cell("%reset -f")]

    NotebookClient(notebook, km=kernel, timeout=300).execute(cleanup_kc=False)

    assert [kinds_of_output(cell) for cell in notebook.cells[:-2]] == shown  # the stored outputs are those of a run
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000


def kinds_of_output(cell) -> set[str]:
    """Which of `image/png`, `text/html` and `text/plain` a cell shows."""
    outputs = cell.get("outputs", [])
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    kinds = {kind for output in outputs for kind in output.get("data", {"text/plain": ""})}
    return kinds & {"image/png", "text/html", "text/plain"}


def test_every_notebook_is_run():
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == {*CLAIMS}
