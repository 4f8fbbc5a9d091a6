"""What the tests of several data sets share."""

import pytest

from implicit_slate.cli import main


@pytest.fixture
def check(capsys):
    """check(kind, folder, …): the exit status, and the lines on stdout; of bad usage, the one line on stderr."""

    def run(kind, folder, *options) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main(["data", "check", kind, str(folder), *map(str, options)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, (printed.err if status == 2 else printed.out).splitlines()

    return run
