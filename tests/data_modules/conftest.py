"""Fixtures for the tests of all data sets."""

import pytest

from implicit_slate.cli import main


@pytest.fixture
def check(capsys):
    """check(kind, folder, …) returns the exit status and the lines on stdout, or for bad usage the line on stderr."""

    def run(kind, folder, *options) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main(["data", "check", kind, str(folder), *map(str, options)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, (printed.err if status == 2 else printed.out).splitlines()

    return run


@pytest.fixture
def blames(check):
    """blames(kind, folder, message) asserts that exactly one line of the check starts with `message`, and returns all
    its lines."""

    def run(kind, folder, message, *options) -> list[str]:
        status, lines = check(kind, folder, *options)
        assert status == 1 and sum(line.startswith(message) for line in lines) == 1, lines
        return lines

    return run
