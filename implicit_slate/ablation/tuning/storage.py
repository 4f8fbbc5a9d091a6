"""The database of a search. If it is unreachable, we wait for it; trials of dead processes are started again."""

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from implicit_slate.errors import UserError

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
"""A trial without a heartbeat for this long is run again, by the next process that is free."""
RETRY_SECONDS = 1.0
MOST_TRIES = 10

# A server that disappears silently is noticed after a minute; one that only stalls is waited for.
POSTGRESQL = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
SQLITE = {"timeout": 60}

warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats have been experimental for years
begin_again = RetryHeartbeatStaleTrialCallback(max_retry=MOST_TRIES)
"""Puts a trial without a result into the queue again: `begin_again(study, trial)`."""

Answer = TypeVar("Answer")


class _Storage(RDBStorage):
    """Optuna's storage, but with a first heartbeat before a trial starts: without any, Optuna would not notice that its
    process died."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.RUNNING:
            super().record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(StorageInternalError):  # the server is unreachable; the next heartbeat is soon due
            super().record_heartbeat(trial_id)


def patiently(ask: Callable[..., Answer], *arguments: Any, **named: Any) -> Answer:
    """Call `ask` until the server answers. Only for calls that may be repeated."""
    while True:
        try:
            return ask(*arguments, **named)
        except StorageInternalError:
            time.sleep(RETRY_SECONDS)


def open_storage(url: str) -> RDBStorage:
    """The storage at a SQLAlchemy URL: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.

    Every connection is tested before it is used; lost connections are made again, however long that takes.

    Raises:
        UserError: the URL is malformed, its driver is not installed, or there is no such database.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    shown = "--storage"
    try:
        parsed = sqlalchemy.make_url(url)
        shown = f"--storage {parsed}"  # without its password
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        dialect = sqlalchemy.create_engine(parsed).dialect
    except ModuleNotFoundError as error:
        hint = "; make setup EXTRAS=postgresql" if error.name == "psycopg" else ""
        raise UserError(f"{shown}: needs the package {error.name}{hint}") from None
    except SQLAlchemyError as error:
        raise UserError(
            f"{shown}: {_one_line(error)}; expected sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    options = {"sqlite": SQLITE, "postgresql": POSTGRESQL}.get(dialect.name, {})
    is_open = False

    def connect() -> Any:
        positional, named = dialect.create_connect_args(parsed)
        while True:
            try:
                return dialect.connect(*positional, **{**options, **named})
            except dialect.dbapi.OperationalError:
                if not is_open:
                    raise
                time.sleep(RETRY_SECONDS)

    for left in reversed(range(MOST_TRIES)):
        try:
            storage = _Storage(
                parsed.render_as_string(hide_password=False),
                {"creator": connect, "pool_pre_ping": True, "pool_size": 0},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=begin_again,
            )
            break
        except (SQLAlchemyError, RuntimeError, OSError) as error:  # RuntimeError: a database of another version
            # If several processes create the tables of a new database at the same time, only one succeeds.
            if not left or not isinstance(error, (IntegrityError, ProgrammingError)):
                raise UserError(f"{shown}: cannot be opened ({_one_line(error)})") from None
            time.sleep(RETRY_SECONDS)
    is_open = True
    return storage


def _one_line(error: BaseException) -> str:
    """The driver's message, without what SQLAlchemy adds."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200]
