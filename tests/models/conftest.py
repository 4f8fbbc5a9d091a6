"""The numbers of a small public SLATE."""

from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def reference() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parents[1] / "data" / "public_slate_small.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if name != "config"}


@pytest.fixture
def state(reference) -> dict[str, torch.Tensor]:
    """Its parameters, by the names of the public code."""
    return {name.removeprefix("state/"): value for name, value in reference.items() if name.startswith("state/")}
