"""A cell in TensorBoard's HPARAMS tab: its axes as the columns to sort and filter by, its final measures beside them.

Neither Lightning's `log_hyperparams` nor torch's `add_hparams` serves here: the one shows every option of the config,
the other knows no display names and calls every run a success. TensorBoard's own functions want TensorFlow, so the
records are made from its protocol buffers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_FAILURE,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from implicit_slate.measures import headline_columns


def log_hparams(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a cell's axes and measures (see `result.py`) for the HPARAMS tab, into the cell's folder.

    The measures become scalars `final/<column>`; one that is null stays blank in the tab. A diverged cell has the
    status "failure" there. TensorBoard takes the columns from the first run that it finds, so every cell names all of
    them; of those it shows the first five until one ticks more.
    """
    # As a number, a seed would be shown as 0.0000 and filtered by an interval.
    axes = {axis: str(value) if axis == "seed" else value for axis, value in result["axes"].items()}
    measures = headline_columns()
    columns = [_column(axis, value) for axis, value in axes.items()]
    metrics = [MetricInfo(name=MetricName(tag=f"final/{column}"), display_name=column) for column in measures]
    start = SessionStartInfo()
    for axis, value in axes.items():
        kind = {DATA_TYPE_BOOL: "bool", DATA_TYPE_FLOAT64: "number", DATA_TYPE_STRING: "string"}[_type(value)]
        setattr(start.hparams[axis], f"{kind}_value", value)
    end = SessionEndInfo(status=STATUS_SUCCESS if result["status"] == "complete" else STATUS_FAILURE)
    with SummaryWriter(str(folder)) as writer:
        for tag, content in (
            (metadata.EXPERIMENT_TAG, {"experiment": Experiment(hparam_infos=columns, metric_infos=metrics)}),
            (metadata.SESSION_START_INFO_TAG, {"session_start_info": start}),
            (metadata.SESSION_END_INFO_TAG, {"session_end_info": end}),
        ):
            about = metadata.create_summary_metadata(HParamsPluginData(**content))
            summary = Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
            writer.file_writer.add_summary(summary)
        for column in measures:
            if result["measures"][column] is not None:
                writer.add_scalar(f"final/{column}", result["measures"][column], result["step"])


def _column(axis: str, value: Any) -> HParamInfo:
    info = HParamInfo(name=axis, type=_type(value))
    if value in ("on", "off"):  # tick boxes to filter by
        info.domain_discrete.extend(["on", "off"])
    return info


def _type(value: Any) -> int:
    if isinstance(value, bool):
        return DATA_TYPE_BOOL
    return DATA_TYPE_FLOAT64 if isinstance(value, (int, float)) else DATA_TYPE_STRING
