import pytest

from implicit_slate.cli import main
from implicit_slate.evaluation import job, run
from implicit_slate.evaluation.job import Worker
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


@pytest.fixture
def units(monkeypatch):
    """The units of work that are done, as they are."""
    done, do = [], Worker.do

    def noted(worker, unit):
        done.append(unit)
        return do(worker, unit)

    monkeypatch.setattr(Worker, "do", noted)
    return done


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Options with which `evaluate` measures FID and KID, of a small network whose features say what it has seen."""
    monkeypatch.setattr(job, "Inception", made.ColourFeatures)
    monkeypatch.setattr(run, "read_weights", lambda path: None)
    monkeypatch.setattr(made.ColourFeatures, "images", 0)
    file = tmp_path / "weights.pth"
    file.touch()
    return ["--fid-weights", str(file)]


@pytest.fixture
def refuses(capsys):
    """The line with which a call of `evaluate` is refused."""

    def call(*argv: object) -> str:
        assert main(["evaluate", *map(str, argv)]) == 2
        *progress, error = capsys.readouterr().err.splitlines()
        assert error.startswith("implicit-slate: ") and all(line.startswith("decode ") for line in progress)
        return error

    return call
