import pytest

from tests.evaluation import made


@pytest.fixture(autouse=True)
def no_caches_of_this_machine(tmp_path, monkeypatch):
    """Neither weights nor features that other runs have left are found."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return made.images(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def checkpoint(tmp_path, root):
    return made.run(tmp_path / "run", root)
