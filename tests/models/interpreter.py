"""Triton's interpreter, which runs kernels on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def interpret(module: str) -> str:
    """What a module of tests prints as a program whose kernels are interpreted; skips the test without Triton.

    It is a process of its own, because what interprets is chosen when Triton is imported.
    """
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=Path(__file__).parents[2], env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
