"""The signals that end a long command, and those that do not."""

import signal

import pytest

from implicit_slate.processes import stop_as_by_ctrl_c


@pytest.fixture(autouse=True)
def handlers():
    """The signal handlers of a process that was not started by `nohup`."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_hangup_stops_a_command_but_not_under_nohup():
    stop_as_by_ctrl_c()
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop_as_by_ctrl_c()
    signal.raise_signal(signal.SIGHUP)
