"""The finished cells of a grid as trials of an Optuna study, so that Optuna's dashboard and plots show the grid.

The study, `study.db` in the run's folder, is generated from the results and never read: it can be deleted at any time.
"""

import sys
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from implicit_slate.files import sqlite_url
from implicit_slate.measures import final_loss
from implicit_slate.run_folder import DONE, Axes, RunFolder


def add_trials(folder: RunFolder) -> None:
    """Write a new study with every finished cell; if that fails, print one line."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = folder.path / "study.db"
    try:
        with folder.lock():
            storage, name = sqlite_url(file), folder.path.resolve().name
            if name in optuna.get_all_study_names(storage):  # a run can get new values of an axis, a study cannot
                optuna.delete_study(study_name=name, storage=storage)
            study = optuna.create_study(storage=storage, study_name=name)
            choices = {
                axis: CategoricalDistribution(list(dict.fromkeys(axes[axis] for axes in folder.cells.values())))
                for axis in next(iter(folder.cells.values()))
            }
            for cell, axes in folder.cells.items():
                result = folder.result(cell)
                if result is not None and result["status"] in DONE:
                    study.add_trial(_trial(cell, axes, result, choices))
    except Exception as error:  # a damaged database may raise anything
        print(f"{file}: not written ({' '.join(str(error).split())[:200]}); it can be deleted", file=sys.stderr)


def _trial(
    cell: str, axes: Axes, result: dict[str, Any], choices: dict[str, CategoricalDistribution]
) -> optuna.trial.FrozenTrial:
    loss = final_loss(result["measures"])
    complete = result["status"] == "complete" and loss is not None  # in Optuna complete trials need a value
    return create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=loss if complete else None,
        params=axes,
        distributions=choices,
        user_attrs={"cell": cell} | {key: value for key, value in result["measures"].items() if value is not None},
    )
