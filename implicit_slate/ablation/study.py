"""The queue of a grid's cells: an Optuna study in which every cell that is to be run is one enqueued trial.

The files of the run say what is done (`result.json`) and what is being worked on (a cell's lock); the study says who
may begin what. So a study that lost a worker at any moment is mended by comparing it with the files.
"""

import contextlib
import socket
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from implicit_slate.ablation.result import final_loss
from implicit_slate.ablation.run_folder import CellLock, RunFolder, is_locked, try_lock
from implicit_slate.errors import UserError

HEARTBEAT_SECONDS = 20
GRACE_SECONDS = 120
CONNECT_SECONDS = 5
SQLITE_BUSY_SECONDS = 60

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats, since Optuna 2.9


@dataclass
class Claim:
    """A cell that this process, and no other, may run."""

    cell: str
    trial: FrozenTrial
    lock: CellLock


class Queue:
    """The study of a run. Every method may be called from any thread, and by any number of processes and hosts."""

    def __init__(self, folder: RunFolder, study_name: str, url: str | None = None):
        """Open the study, or make it; `url` is any SQLAlchemy database URL, SQLite in the run's folder by default."""
        self.folder = folder
        self.storage = _open(url or f"sqlite:///{folder.path.absolute()}/study.db", folder)
        self.study = optuna.create_study(storage=self.storage, study_name=study_name, load_if_exists=True)
        self._mine: dict[str, Claim] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def claim(self) -> Claim | None:
        """The next cell, locked for us, begun ones first; None if nothing waits (others may still be running).

        One process at a time asks: to make a trial ours Optuna relies on SELECT FOR UPDATE, which SQLite lacks.
        `Study.ask` is no help, because it invents a trial when none waits.
        """
        with self.folder.lock():
            self._mend()
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            for trial in sorted(waiting, key=lambda trial: not self._is_begun(trial)):
                cell = trial.user_attrs.get("cell")
                lock = try_lock(self.folder.cell(cell)) if cell in self.folder.cells else None
                if lock is None:
                    continue
                if self.folder.result(cell) is not None:
                    self._end(trial, TrialState.FAIL)
                    lock.release()
                    continue
                if not self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    lock.release()
                    continue
                self.storage.set_trial_user_attr(trial._trial_id, "host", socket.gethostname())
                self.storage.record_heartbeat(trial._trial_id)
                self._mine[cell] = Claim(cell, trial, lock)
                return self._mine[cell]
        return None

    def _is_begun(self, trial: FrozenTrial) -> bool:
        return (self.folder.cell(str(trial.user_attrs.get("cell"))) / "checkpoints" / "last.ckpt").exists()

    def finish(self, claim: Claim) -> None:
        """Give a claim back. Its cell is done if it has a result by now, else it goes back into the queue."""
        result = self.folder.result(claim.cell) or {"status": "interrupted"}
        status, value = result["status"], final_loss(result)
        state = {"complete": TrialState.COMPLETE, "diverged": TrialState.PRUNED}.get(status, TrialState.FAIL)
        if state == TrialState.COMPLETE and value is None:
            state = TrialState.PRUNED  # Optuna has no complete trial without a value
        with self.folder.lock():
            del self._mine[claim.cell]
            claim.lock.release()
            self._end(claim.trial, state, value)

    def close(self) -> None:
        self._closed.set()

    def _mend(self) -> None:
        """Make the study agree with the files: every cell without a result waits or runs, in exactly one trial.

        A worker of this host is dead if the lock of its cell is free. Locks may not be seen from another host, so
        there the heartbeat decides.
        """
        optuna.storages.fail_stale_trials(self.study)
        queued = set()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)):
            cell, host = trial.user_attrs.get("cell"), trial.user_attrs.get("host")
            here = host is None or host == socket.gethostname()
            if trial.state == TrialState.RUNNING and here and not is_locked(self.folder.cell(str(cell))):
                self._end(trial, TrialState.FAIL)
            else:
                queued.add(cell)
        for cell in self.folder.cells.values():
            if cell.id not in queued and self.folder.status(cell.id) == "waiting":
                self.study.enqueue_trial({}, user_attrs={"cell": cell.id, **cell.axes})

    def _end(self, trial: FrozenTrial, state: TrialState, value: float | None = None) -> None:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # its heart was thought to have stopped
            values = [value] if state == TrialState.COMPLETE else None
            self.storage.set_trial_state_values(trial._trial_id, state, values)

    def _keep_alive(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            for claim in list(self._mine.values()):
                with contextlib.suppress(Exception):  # a beat that is lost now and then is what the grace is for
                    self.storage.record_heartbeat(claim.trial._trial_id)


def check_storage(url: str) -> None:
    """`UserError` if the URL is no good or nobody answers within seconds."""
    with _user_errors(url):
        engine = sqlalchemy.create_engine(_driven(url), connect_args=_timeouts(url), poolclass=sqlalchemy.NullPool)
        engine.connect().close()


def _open(url: str, folder: RunFolder) -> optuna.storages.RDBStorage:
    """The database at `url`, its tables made if need be."""
    with _user_errors(url), folder.lock():  # two that make the tables at once disturb each other
        return optuna.storages.RDBStorage(
            _driven(url),
            engine_kwargs={"connect_args": _timeouts(url), "pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
        )


def _driven(url: str) -> str:
    """`postgresql://…` with the driver that is installed: SQLAlchemy takes psycopg, most have psycopg2 as yet."""
    scheme, separator, rest = url.partition("://")
    if scheme == "postgresql" and not find_spec("psycopg") and find_spec("psycopg2"):
        scheme = "postgresql+psycopg2"
    return scheme + separator + rest


def _timeouts(url: str) -> dict[str, int]:
    backend = sqlalchemy.make_url(url).get_backend_name()
    if backend == "sqlite":
        return {"timeout": SQLITE_BUSY_SECONDS}
    return {"connect_timeout": CONNECT_SECONDS} if backend in ("postgresql", "mysql", "mariadb") else {}


@contextlib.contextmanager
def _user_errors(url: str) -> Iterator[None]:
    try:
        yield
    except sqlalchemy.exc.ArgumentError as error:
        if isinstance(error, sqlalchemy.exc.NoSuchModuleError):
            raise UserError(f"--storage: no driver for {url.partition(':')[0]!r} is known") from None
        raise UserError("--storage: not a database URL such as postgresql://user:password@host/name") from None
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, TypeError) as error:
        name = sqlalchemy.make_url(url).render_as_string(hide_password=True)
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        if isinstance(error, ImportError):
            cause += " (the driver of this database is not installed)"
        raise UserError(f"--storage {name}: {cause}") from None
