"""TensorBoard for a grid: `implicit-slate tensorboard RUN_DIR`, and what cells log for it besides their curves.

For HPARAMS, neither Lightning's `log_hparams` nor torch's `add_hparams` is suitable: the first shows every option of
the config, the second has no display names and marks every run as a success.
"""

import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from implicit_slate.errors import ArgumentParser, UserError, port
from implicit_slate.files import flush
from implicit_slate.measures import LOGGED, headline_columns
from implicit_slate.run_folder import Axes, RunFolder, tricks_of

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger
    from torch.utils.tensorboard import SummaryWriter

THROUGHPUT = "throughput/steps_per_second"
"""Training steps per second since the previous point, including validation; in TensorBoard only."""

CHARTS = {
    "stability": ("jacobian/spectral_norm", "grad_norm", "residual", "gradient/cosine"),
    "optimisation": ("val/cross_entropy", "val/mse", "train/loss", "train/learning_rate"),
    "slots": ("slots/fg_ari", "slots/in_use", "slots/attention_entropy", "slots/information"),
    "throughput": (THROUGHPUT,),
}
"""The tags on TensorBoard's opening page, one chart each, by category."""


def parser() -> ArgumentParser:
    about = "Start TensorBoard on a grid, with short cell names, or on a folder with grids and other runs."
    made = ArgumentParser("implicit-slate tensorboard", about, "implicit-slate tensorboard runs/demo")
    made.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="the folder of a grid, such as runs/demo, or of several"
    )
    made.add_argument("--port", type=port, default=6006, help="0 for any free port; default: 6006")
    return made


def main(argv: Sequence[str]) -> int:
    """Serve until stopped by Ctrl-C."""
    arguments = parser().parse_args(argv)
    run_dir = arguments.run_dir
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such folder; expected one with runs, such as runs/demo")
    from tensorboard import default, program  # takes a second to import

    plugins = default.get_plugins()  # the page opens with the first plugin that has something to show
    plugins.sort(key=lambda plugin: getattr(plugin, "plugin_name", "") != "custom_scalars")
    board = program.TensorBoard(plugins)
    with to_show(run_dir) as logdir:
        board.configure(argv=("tensorboard", "--logdir", str(logdir), "--port", str(arguments.port)))
        return 2 if board.main() else 0


@contextmanager
def to_show(run_dir: Path) -> Iterator[Path]:
    """The folder to show. For a folder with several grids and runs it is a temporary folder with links to all of them,
    because in the folder itself TensorBoard would find every cell under two names."""
    if _is_grid(run_dir):
        yield link_cells(RunFolder(run_dir))
    elif not any(map(_is_grid, run_dir.iterdir())):
        yield run_dir
    else:
        with TemporaryDirectory() as links:
            for place in run_dir.iterdir():
                shown = link_cells(RunFolder(place)) if _is_grid(place) else place
                (Path(links) / place.name).symlink_to(shown.absolute())
            yield Path(links)


def _is_grid(folder: Path) -> bool:
    return any(folder.glob("cells/*/cell.json"))


def link_cells(folder: RunFolder) -> Path:
    """Fill the run's folder `tensorboard/` with a link to each cell's folder, whose short name is, for example,
    `implicit/no-clip/seed0`. Links are relative, so the run can be moved.

    Returns:
        The folder `tensorboard`.

    Raises:
        UserError: links cannot be made there.
    """
    tree = folder.path / "tensorboard"
    try:
        links = {tree / name: folder.cell(cell) for cell, name in run_names(folder.cells).items()}
        links |= {tree / "pretrain": folder.pretrain} if folder.pretrain.is_dir() else {}
        for link in [*tree.rglob("*")]:
            if link.is_symlink() and link not in links:
                link.unlink()
        for link, cell in links.items():
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(cell, link.parent), target_is_directory=True)
    except OSError as error:
        raise UserError(f"{tree}: {error.strerror}") from error
    return tree


def run_names(cells: Mapping[str, Axes]) -> dict[str, str]:
    """Each cell's name in TensorBoard, made of the axes that vary, such as `implicit/no-clip,iterations=7/seed0`."""
    values = {
        axis: {str(axes.get(axis)) for axes in cells.values()} for all_axes in cells.values() for axis in all_axes
    }
    varied = [axis for axis, found in values.items() if len(found) > 1]
    tricks = tricks_of(cells.values())

    def name(axes: Axes) -> str:
        method = [
            str(axes[axis])
            for axis in ("gradient", "solver")
            if axis in axes and (axis in varied or axis == "gradient")
        ]
        removed = [f"no-{axis}" for axis in tricks if axes.get(axis) == "off"] or ["all-tricks"] * bool(tricks)
        others = [axis for axis in varied if axis in axes and axis not in ("gradient", "solver", "seed", *tricks)]
        setting = removed + [f"{axis}={axes[axis]}" for axis in others]
        parts = (",".join(method), ",".join(setting), f"seed{axes['seed']}" if "seed" in axes else "")
        return "/".join(re.sub(r"[\s/]", "", part) for part in parts if part)

    return {cell: name(axes) or cell for cell, axes in cells.items()}


def layout(tags: Container[str]) -> dict[str, dict[str, list[Any]]]:
    """The layout of the opening page for `add_custom_scalars`, with those charts of `CHARTS` that are in `tags`."""
    found = {}
    for category, charts in CHARTS.items():
        if shown := [tag for tag in charts if tag in tags]:
            found[category] = {_title(tag): ["Multiline", [f"^{re.escape(tag)}$"]] for tag in shown}
    return found


def _title(tag: str) -> str:
    return LOGGED[tag].name if tag in LOGGED else "training steps per second"


def log_configuration(writer: "SummaryWriter", config: str) -> None:
    """Show a cell's complete configuration (YAML) under TEXT."""
    writer.add_text("configuration", "\n".join(f"    {line}" for line in config.splitlines()))


def flush_events(logger: "TensorBoardLogger", folder: Path) -> None:
    """Flush all events of a cell to disk."""
    logger.experiment.flush()
    for place in (*folder.glob("events.out.tfevents.*"), folder):
        flush(place)


OURS = ".hparams"
"""Suffix of the event file of `log_hparams`."""


def log_hparams(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a cell's axes and measures (from its `result.json`) to the cell's folder, for the HPARAMS tab.

    Measures become scalars `summary/<column>`; null ones are blank in the tab. A diverged cell has the status "failure"
    there. TensorBoard takes the columns from the first run that it finds, so every cell lists all of them; at first it
    shows five of them, and more can be ticked.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
    from tensorboard.plugins.hparams.summary_v2 import Discrete, HParam, Metric, hparams_config_pb, hparams_pb
    from torch.utils.tensorboard import SummaryWriter

    # A seed is text because TensorBoard would show a number as 0.0000 and filter it by an interval. It has no null.
    axes = {axis: str(v) if axis == "seed" else "null" if v is None else v for axis, v in result["axes"].items()}
    measures = headline_columns()
    boxes = ("on", "off")  # shown as a filter with tick boxes; other axes have a text field or an interval
    columns = [HParam(k, Discrete(boxes if v in boxes else (), dtype=type(v))) for k, v in axes.items()]
    metrics = [Metric(f"summary/{column}", display_name=column) for column in measures]
    # TensorBoard has a function for the end of a session, but it needs TensorFlow.
    end = SessionEndInfo(status=STATUS_SUCCESS if result["status"] == "complete" else STATUS_FAILURE)
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    for earlier in folder.glob(f"events.*{OURS}"):  # left by an attempt that was killed before it wrote its result
        earlier.unlink()
    with SummaryWriter(str(folder), filename_suffix=OURS) as writer:
        writer.file_writer.add_summary(hparams_config_pb(columns, metrics))
        writer.file_writer.add_summary(hparams_pb(axes, trial_id=""))  # otherwise runs with equal axes share a row
        writer.file_writer.add_summary(Summary(value=[value]))
        for column in measures:
            if result["measures"][column] is not None:
                writer.add_scalar(f"summary/{column}", result["measures"][column], result["step"])
