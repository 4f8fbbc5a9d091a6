import json

import pytest

from implicit_slate.cli import main
from implicit_slate.evaluation import run
from tests.evaluation import made


@pytest.fixture(autouse=True)
def no_caches_of_this_machine(tmp_path, monkeypatch):
    """Hides weights and decoded images left by other runs."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return made.images(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def checkpoint(tmp_path, root):
    return made.run(tmp_path / "run", root)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Options with which `evaluate` measures FID and KID, using a small network that counts the images it sees."""
    monkeypatch.setattr(run, "Inception", made.ColourFeatures)
    monkeypatch.setattr(made.ColourFeatures, "images", 0)
    file = tmp_path / "weights.pth"
    file.touch()
    return ["--fid-weights", str(file)]


@pytest.fixture
def evaluate():
    """A function that evaluates two draws, and returns the content of `test.json`."""

    def call(checkpoint, *options: str) -> dict:
        assert main(["evaluate", str(checkpoint), "--draws", "2", *options]) == 0
        return json.loads((checkpoint.parents[1] / "evaluation" / "test.json").read_text())

    return call
