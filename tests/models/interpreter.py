"""Runs Triton kernels on a CPU with Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def interpret(module: str) -> str:
    """Runs a test module as a program with interpreted kernels, and returns its output. Without Triton, skips the test.

    This takes a separate process, because the interpreter is chosen when Triton is imported.
    """
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=Path(__file__).parents[2], env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
