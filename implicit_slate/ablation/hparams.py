"""A cell in TensorBoard's HPARAMS tab: its axes as the columns to sort and filter by, its final measures beside them.

Neither Lightning's `log_hyperparams` nor torch's `add_hparams` serves here: the one shows every option of the config,
the other knows no display names and calls every run a success.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import Discrete, HParam, Metric, hparams_config_pb, hparams_pb
from torch.utils.tensorboard import SummaryWriter

from implicit_slate.measures import headline_columns


def log_hparams(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a cell's axes and measures (its `result.json`) for the HPARAMS tab, into the cell's folder.

    The measures become scalars `final/<column>`; one that is null stays blank in the tab. A diverged cell has the
    status "failure" there. TensorBoard takes the columns from the first run that it finds, so every cell names all of
    them; of those it shows the first five until one ticks more.
    """
    # As a number, a seed would be shown as 0.0000 and filtered by an interval.
    axes = {axis: str(value) if axis == "seed" else value for axis, value in result["axes"].items()}
    measures = headline_columns()
    boxes = ("on", "off")  # to tick, as a filter; without such a domain it is a text field or an interval
    columns = [HParam(k, Discrete(boxes if v in boxes else (), dtype=type(v))) for k, v in axes.items()]
    metrics = [Metric(f"final/{column}", display_name=column) for column in measures]
    # For the end of a session TensorBoard has a function only where TensorFlow is installed.
    end = SessionEndInfo(status=STATUS_SUCCESS if result["status"] == "complete" else STATUS_FAILURE)
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    with SummaryWriter(str(folder)) as writer:
        writer.file_writer.add_summary(hparams_config_pb(columns, metrics))
        writer.file_writer.add_summary(hparams_pb(axes, trial_id=""))  # with another one, equal axes would be one row
        writer.file_writer.add_summary(Summary(value=[value]))
        for column in measures:
            if result["measures"][column] is not None:
                writer.add_scalar(f"final/{column}", result["measures"][column], result["step"])
