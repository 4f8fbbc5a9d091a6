"""The results of a search: an experiment file with the best settings of each mode, and a report with Optuna's plots."""

import warnings
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from matplotlib import pyplot
from optuna.trial import FrozenTrial, TrialState

from implicit_slate.ablation.matrix import cell_id
from implicit_slate.ablation.tuning.search import ENDED, OPTIMIZATION, Search, cell_number
from implicit_slate.files import write_atomically
from implicit_slate.report.figures import save
from implicit_slate.run_folder import LAST
from implicit_slate.yaml_files import override


def write_results(search: Search) -> Path:
    """Write `best/`, `trials.csv`, and `report.md` with its figures to the run's folder; returns the report's path."""
    header = "| mode | trials | ended early | loss of the first trial | best loss | at |"
    lines = ["# Each gradient mode at its best", "", header, "|" + "---|" * 6]
    tables, axis, figures = [], {}, []
    for mode, study in search.studies.items():
        trials = study.get_trials(deepcopy=False)
        tables.append(study.trials_dataframe().assign(gradient=mode))
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        early = sum(trial.state == TrialState.PRUNED for trial in trials)
        first = next((trial for trial in trials if cell_number(trial) == 0 and trial.state in ENDED), None)
        own = "none" if first is None else "ended early" if first.state == TrialState.PRUNED else f"{first.value:.4g}"
        row = f"| `{mode}` | {len(complete) + early} | {early} | {own} |"
        if not complete:
            lines.append(f"{row} none | |")
            continue
        best = min(complete, key=lambda trial: trial.value)
        settings = search.spaces[mode].ask(optuna.trial.FixedTrial(best.params))
        at = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        lines.append(f"{row} {best.value:.4g} | {at} |")
        axis[mode] = {"model.gradient": mode} | {OPTIMIZATION + name: value for name, value in settings.items()}
        _write_experiment(search, mode, best, axis[mode])
        figures += [f"\n## {mode}\n", *(f"![{name}]({name}.png)" for name in _draw(search.folder, mode, study))]
    lines += ["", "As an axis for `ablations.yaml`, which sets each mode at its own best:", "", "```yaml"]
    lines += [yaml.safe_dump({"gradient_at_best": axis}, sort_keys=False, width=1000), "```", *figures, ""]
    write_atomically(search.folder / "trials.csv", pd.concat(tables).to_csv(index=False))
    write_atomically(search.folder / "report.md", "\n".join(lines))
    return search.folder / "report.md"


def _write_experiment(search: Search, mode: str, best: FrozenTrial, settings: dict[str, Any]) -> None:
    pretrained = str(search.folder.resolve() / "pretrain" / LAST)
    more = {search.checkpoint: pretrained} if search.checkpoint else {}
    config = override(search.configs[mode], settings | more)
    about = f"# Trial {cell_number(best)} of implicit-slate tune, the best one of {mode}: loss {best.value:.6g}.\n"
    name = cell_id({"gradient": mode})
    write_atomically(search.folder / "best" / f"{name}.yaml", about + yaml.safe_dump(config, sort_keys=False))


def _draw(folder: Path, mode: str, study: optuna.Study) -> list[str]:
    """Draw Optuna's plots of a study; returns the names of the files without suffix."""
    plots = {"slice": optuna.visualization.matplotlib.plot_slice}
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) > 1:
        plots["importance"] = optuna.visualization.matplotlib.plot_param_importances
    names = []
    for kind, plot in plots.items():
        size = {"figure.figsize": (11, 3.5), "figure.constrained_layout.use": True}
        with warnings.catch_warnings(), pyplot.rc_context(size):
            warnings.simplefilter("ignore")  # Optuna's matplotlib plots are experimental
            axes = plot(study, target_name="validation loss")
        figure = (axes if kind == "importance" else axes[0]).figure
        names.append(f"{kind}_{cell_id({'gradient': mode})}")
        save(figure, folder, names[-1])
        pyplot.close(figure)
    return names
