"""One search per gradient mode: Optuna proposes settings, a cell is trained with them, and poor cells end early."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from implicit_slate.ablation.cell import preparation, prepare
from implicit_slate.ablation.matrix import cell_id
from implicit_slate.ablation.pool import MOST_TRIES, Resources, Tries, start
from implicit_slate.ablation.tuning.storage import begin_again, patiently
from implicit_slate.errors import UserError
from implicit_slate.files import read_json
from implicit_slate.locks import is_locked
from implicit_slate.measures import final_loss
from implicit_slate.processes import BUSY
from implicit_slate.run_folder import read_result
from implicit_slate.yaml_files import leaves, override

POLL_SECONDS = 1.0
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
OPTIMIZATION = "model.optimization."


class CellFailed(Exception):
    """The cell of a trial failed, or has no validation loss."""


@dataclass(frozen=True)
class Space:
    """The search space of learning rate, clip and warmup of a mode, all on a logarithmic scale."""

    own: dict[str, float]
    """The first trial: the experiment's own settings; a clip of 1 or a warmup of one step if it has none."""
    limits: dict[str, tuple[float, float]]

    @classmethod
    def around(cls, config: Mapping[str, Any], max_steps: int) -> "Space":
        """A tenth to ten times the experiment's learning rate, a twentieth to twenty times its clip (1 if it has none),
        and a warmup of 1 step to a fifth of all steps. Raises `UserError` without a learning rate or `max_steps`."""
        found = {key.removeprefix(OPTIMIZATION): value for key, value in leaves(config)}
        # YAML reads quoted numbers, and 1e-3 without a decimal point, as text.
        rate, clip = found.get("learning_rate"), float(found.get("clip_norm") or 1)
        most, warmup = max(1, max_steps // 5), int(found.get("warmup_steps") or 1)
        if rate is None or max_steps < 1:
            raise UserError(f"tune: the experiment must set {OPTIMIZATION}learning_rate and trainer.max_steps")
        rate = float(rate)
        return cls(
            {"learning_rate": rate, "clip_norm": clip, "warmup_steps": min(warmup, most)},
            {"learning_rate": (rate / 10, rate * 10), "clip_norm": (clip / 20, clip * 20), "warmup_steps": (1, most)},
        )

    def ask(self, trial: Trial) -> dict[str, float]:
        """The settings of a trial, rounded to three significant digits."""
        found = {}
        for name, (low, high) in self.limits.items():
            suggest = trial.suggest_int if name == "warmup_steps" else trial.suggest_float
            found[name] = float(f"{suggest(name, low, high, log=True):.3g}")
        return found | {"warmup_steps": int(found["warmup_steps"])}


class Search:
    """The searches of all modes, in the folder of a run and one storage; other processes may take part in them."""

    failed: BaseException | None = None
    """The exception that ended a worker of this process."""
    heard: float = math.inf
    """`time.monotonic` of the storage's last answer; infinity while it is not being used."""

    def __init__(
        self,
        folder: Path,
        configs: Mapping[str, dict[str, Any]],
        checkpoint: str | None,
        max_steps: int,
        devices: int,
        say: Callable[[str], None],
    ):
        """`configs` are by mode; `checkpoint` is their key for the pretraining's checkpoint, if there is one."""
        self.folder, self.configs, self.checkpoint, self.devices, self.say = folder, configs, checkpoint, devices, say
        self.spaces = {mode: Space.around(config, max_steps) for mode, config in configs.items()}
        # With fewer steps before pruning, half of the pruned trials would still have been in their warmup.
        self.pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max_steps * 2 // 5)
        self.studies: dict[str, Study] = {}
        self._failures, self._asking = 0, threading.Lock()

    def open(self, storage: BaseStorage, prefix: str) -> None:
        """Create or join the studies, each named `prefix` + mode. Raises `UserError` if a study of this name has
        another configuration."""
        self._storage, self.heard = storage, time.monotonic()
        for mode, config in self.configs.items():
            name = prefix + mode
            study = optuna.create_study(storage=storage, study_name=name, pruner=self.pruner, load_if_exists=True)
            wanted = preparation(name, {}, config, self.devices, self.checkpoint)
            found = study.user_attrs.get("preparation")
            if found is None:
                study.set_user_attr("preparation", wanted)
                study.enqueue_trial(self.spaces[mode].own, skip_if_exists=True)
            elif found != wanted:
                raise UserError(f"the storage holds a different study {name!r}; give another --out")
            self.studies[mode] = study

    def run(self, trials: int, resources: Resources) -> None:
        """Run trials until every mode has `trials` complete or pruned ones, including those of other processes."""
        workers = [
            threading.Thread(target=self._work, args=(trials, resources, index), daemon=True)
            for index in range(resources.workers)
        ]
        for worker in workers:
            worker.start()
        while self.failed is None and any(worker.is_alive() for worker in workers):
            for study in self.studies.values():
                patiently(study.get_trials, deepcopy=False)
            self.heard = time.monotonic()
            time.sleep(POLL_SECONDS)
        self.heard = math.inf
        if self.failed is not None:
            raise self.failed

    def _work(self, trials: int, resources: Resources, worker: int) -> None:
        try:
            while self.failed is None and self._try_one(trials, resources, worker):
                pass
        except BaseException as error:
            self.failed = error

    def _next_mode(self, trials: int) -> str | None:
        """The mode with the fewest trials; None if the last trials are still running, "" if all have ended."""
        started = {}
        ended = True
        for mode, study in self.studies.items():
            fail_stale_trials(study)
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            started[mode] = sum(state in (*ENDED, TrialState.RUNNING) for state in states)
            ended &= sum(state in ENDED for state in states) >= trials
        fewest = min(started, key=started.get)
        return "" if ended else fewest if started[fewest] < trials else None

    def _try_one(self, trials: int, resources: Resources, worker: int) -> bool:
        """Run one trial, with Optuna's loop because of its heartbeat. Returns False if nothing is left to do."""
        with ExitStack() as asking:
            asking.enter_context(self._asking)
            mode = patiently(self._next_mode, trials)
            if not mode:
                time.sleep(POLL_SECONDS)
                return mode is None
            sampler = optuna.samplers.TPESampler(constant_liar=True)  # workers must not share a study object
            name = self.studies[mode].study_name
            study = patiently(
                optuna.load_study, study_name=name, storage=self._storage, sampler=sampler, pruner=self.pruner
            )
            asked: list[Trial] = []

            def objective(trial: Trial) -> float:
                asking.close()
                asked.append(trial)
                return self._train(mode, trial, resources, worker)

            try:
                if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                    study.enqueue_trial({})  # trials from the queue have a heartbeat before they run
                study.optimize(objective, n_trials=1)
            except CellFailed as error:
                self.say(str(error))
                self._failures += 1
                if self._failures >= MOST_TRIES:
                    raise
            except (StorageInternalError, AssertionError) as error:  # raised by Optuna if it cannot reach the server
                if asked:
                    patiently(_try_again, study, asked[0].number)
                elif isinstance(error, AssertionError):
                    raise
            except (UpdateFinishedTrialError, ValueError) as error:  # another process ran it too, or declared it dead
                if isinstance(error, UserError) or not asked:
                    raise
                if not patiently(study.get_trials)[asked[0].number].state.is_finished():
                    raise
        return True

    def _train(self, mode: str, trial: Trial, resources: Resources, worker: int) -> float:
        """Train a trial's cell; returns the loss. Raises `CellFailed`, or `TrialPruned` if it is poor or diverged."""
        settings = patiently(self.spaces[mode].ask, trial)
        number = cell_number(trial)
        patiently(trial.set_user_attr, "cell", number)
        axes = {"gradient": mode, "trial": number}
        folder = self.folder / "cells" / cell_id(axes)
        tuned = {OPTIMIZATION + name: value for name, value in settings.items()}
        config = override(self.configs[mode], tuned)
        prepare(folder, preparation(folder.name, axes | settings, config, self.devices, self.checkpoint))
        about = f"{folder.name} ({', '.join(f'{name} {value:g}' for name, value in settings.items())})"
        self.say(f"started: {about}")
        tries, result = Tries(), None
        while result is None:
            status = self._run_cell(folder, trial, about, resources, worker)
            result = read_result(folder)
            if result is None and status != BUSY and tries.add(folder) == MOST_TRIES:
                often = f"its process was killed {MOST_TRIES} times without getting further"
                raise CellFailed(f"failed: {folder.name}: {often}, see {folder / 'log.txt'}")
        loss = final_loss(result["measures"])
        if result["status"] == "diverged":
            self.say(f"diverged: {about}, at step {result['step']}")
            raise optuna.TrialPruned
        if result["status"] == "failed" or loss is None:
            raise CellFailed(
                f"failed: {folder.name}: {result.get('error', 'no validation loss')}, see {folder / 'log.txt'}"
            )
        self.say(f"complete: {about}: loss {loss:.4g}")
        return loss

    def _run_cell(self, folder: Path, trial: Trial, about: str, resources: Resources, worker: int) -> int:
        """Wait until no other process is working on the cell, then run it; returns its process's exit status. Raises
        `TrialPruned` if it is poor."""
        while is_locked(folder):
            time.sleep(POLL_SECONDS)
        process, told = start(folder, resources, worker), 0
        try:
            while process.exitcode is None:
                connection.wait([process.sentinel], POLL_SECONDS)
                for step, loss in (read_json(folder / "progress.json") or {}).get("validations", []):
                    if step > told:
                        patiently(trial.report, loss, step)
                        told = step
                if patiently(trial.should_prune):
                    self.say(f"pruned: {about}, at step {told}")
                    raise optuna.TrialPruned
            return process.exitcode
        finally:
            process.kill()
            process.join()


def cell_number(trial: Trial | FrozenTrial) -> int:
    """The number in the name of a trial's cell: its own, or that of the trial that it repeats."""
    return trial.user_attrs.get("cell", trial.number)


def _try_again(study: Study, number: int) -> None:
    """Put a trial without a result into the queue again; its cell resumes, or is already done."""
    if study.tell(number, state=TrialState.FAIL, skip_if_finished=True).state == TrialState.FAIL:
        begin_again(study, study.get_trials()[number])
