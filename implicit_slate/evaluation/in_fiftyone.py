"""The results of `look` as a FiftyOne data set, and the FiftyOne app to show it.

Each image is a group with these slices: `overview`, a picture of the image and all models' outputs; `image`, with the
true masks; and one slice per model: the reconstruction through its slots, with the slots' masks, the true masks and the
measures. In every slice, `difference` has the difference between models in each measure, so images can be sorted by it.
"""

import contextlib
import logging
import os
import re
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from implicit_slate.errors import UserError
from implicit_slate.evaluation.look import OVERVIEW, TRUTH, Look, differences
from implicit_slate.pictures import SEGMENT_COLORS

COLORS = [color for color in SEGMENT_COLORS if color not in ("#F0E442", "#DDDDDD")]
"""Colours of slots and objects in the app, without the two that are too bright behind the app's white text."""


def connect() -> ModuleType:
    """Import FiftyOne and connect to its database: its own, which it starts, or the one at FIFTYONE_DATABASE_URI.

    Raises:
        UserError: FiftyOne is not installed, or has no database.
    """
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    os.environ.setdefault("FIFTYONE_SHOW_PROGRESS_BARS", "false")
    try:
        import fiftyone
    except ImportError:
        raise UserError("view opens FiftyOne, which needs the extra 'coco': make setup EXTRAS=coco") from None
    logging.getLogger("fiftyone.core.odm.database").setLevel(logging.ERROR)  # hides a warning about MongoDB 6
    try:
        fiftyone.list_datasets()
    except Exception as error:  # there are many kinds: no server, or one that does not start or does not answer
        reason = " ".join(str(error).split())[:120]
        raise UserError("FiftyOne has no database: make setup EXTRAS=coco installs its server; or name your MongoDB "
                        f"with FIFTYONE_DATABASE_URI=mongodb://HOST:PORT ({reason})") from None  # fmt: skip
    return fiftyone


def make_dataset(fo: ModuleType, out: Path, about: dict[str, Any], looks: dict[str, list[Look]]) -> Any:
    """Make a persistent data set in FiftyOne's database. It is named after the folder `out`, and replaces an earlier
    one of this folder. Saved views sort it by each difference, or by each measure if there is one model; largest
    first."""
    words = "-".join(re.findall(r"\w+", f"{out.parent.name} {out.name}"))[-60:]
    dataset = fo.Dataset(f"slate-{words}-{sha256(bytes(out)).hexdigest()[:6]}", overwrite=True, persistent=True)
    dataset.add_group_field("group", default=OVERVIEW)
    samples, spread = [], differences(looks)
    for number, truth in enumerate(looks[TRUTH]):
        group, differs = fo.Group(), spread.loc[number].dropna()
        for name, of_images in looks.items():
            look = of_images[number]
            fields = {"number": number, "difference": fo.DynamicEmbeddedDocument(**differs), **look.measures}
            if name != OVERVIEW:
                fields["objects"] = _detections(fo, truth.labels, "object")
            if look.measures:
                fields["slots"] = _detections(fo, look.labels, "slot")
            samples.append(fo.Sample(str(look.file), group=group.element(name), **fields))
    dataset.add_samples(samples, dynamic=True)

    keys = list(spread.columns)
    several = spread.notna().any(axis=None)
    for key in keys:
        path, name = (f"difference.{key}", f"{key} differs most") if several else (key, f"largest {key}")
        dataset.save_view(name, dataset.sort_by(path, reverse=True))
    shown = {"masks": ["objects", "slots"], "measures": keys, "differences": [f"difference.{key}" for key in keys]}
    groups = [fo.SidebarGroupDocument(name=name, paths=paths) for name, paths in shown.items()]
    rest = fo.DatasetAppConfig.default_sidebar_groups(dataset)
    known = {path for paths in shown.values() for path in paths}
    for group in rest:
        group.paths, group.expanded = [path for path in group.paths if path not in known], False
    dataset.app_config.sidebar_groups = groups + [group for group in rest if group.paths or group.name == "tags"]
    dataset.app_config.color_scheme = fo.ColorScheme(color_by="value", color_pool=COLORS)
    dataset.app_config.active_fields = fo.ActiveFields(paths=["slots", "mse", "difference.mse"])
    dataset.info = about
    dataset.save()
    return dataset


def show(fo: ModuleType, dataset: Any, remote: bool, port: int) -> None:
    """Serve the app with the first saved view until Ctrl-C, or, unless `remote`, until its last page is closed. It
    accepts connections from this machine only."""
    from fiftyone.core.service import ServiceListenTimeout

    view = dataset.load_saved_view(dataset.list_saved_views()[0])
    scheme = dataset.app_config.color_scheme
    for _ in range(3):  # FiftyOne waits one minute, but importing all modules may take longer on a busy machine
        with contextlib.suppress(ServiceListenTimeout):
            session = fo.launch_app(view=view, color_scheme=scheme, remote=remote, port=port, address="127.0.0.1")
            break
    else:
        raise UserError(f"--port {port}: FiftyOne's app did not start there within three minutes; the data set is "
                        f"complete, so you can also start it with: fiftyone app launch {dataset.name}")  # fmt: skip
    try:
        session.wait(-1 if remote else 3)
    except KeyboardInterrupt:
        session.close()


def _detections(fo: ModuleType, labels: np.ndarray | None, what: str) -> Any:
    """The regions of a label map (H, W), except label 0, as detections with instance masks; None for None."""
    if labels is None:
        return None
    height, width = labels.shape
    found = []
    for label in np.unique(labels[labels > 0]):
        region = labels == label
        top, bottom = np.flatnonzero(region.any(1))[[0, -1]] + [0, 1]
        left, right = np.flatnonzero(region.any(0))[[0, -1]] + [0, 1]
        box = [left / width, top / height, (right - left) / width, (bottom - top) / height]
        found.append(fo.Detection(label=f"{what} {label}", bounding_box=box, mask=region[top:bottom, left:right]))
    return fo.Detections(detections=found)
