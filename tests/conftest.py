"""Fixtures of all tests. Tests use one thread: with such small models, threads would only wait for one another."""

import contextlib
import io
import logging
import os
import warnings
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes started by tests


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def no_seed_of_another_test(monkeypatch) -> None:
    """Lightning's `seed_everything` stores the seed in the environment, where it would affect later tests."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that monkeypatch restores it afterwards
    monkeypatch.delenv("PL_GLOBAL_SEED")


@pytest.fixture(autouse=True)
def no_log_level_of_another_test(monkeypatch) -> None:
    """Restores Lightning's log level, which `implicit-slate evaluate` changes."""
    for name in ("lightning.pytorch", "lightning.fabric.utilities"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.getLogger(name).level)


@pytest.fixture(scope="session")
def fid_weights(request) -> Path:
    """FID's weights, from torch's cache or downloaded once into pytest's; if unavailable, the test is skipped."""
    from implicit_slate.cli import main
    from implicit_slate.metrics.inception import WeightsMissing, find_weights

    try:
        return find_weights()
    except WeightsMissing:
        folder = request.config.cache.mkdir("fid_weights")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(["data", "download", "fid-weights", "--out", str(folder)])
    if status:
        reason = f"skipped, no weights of FID: {said.getvalue().strip()}"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    return find_weights(folder)
