"""What `look` found as a data set of FiftyOne's, and FiftyOne's app on it.

An image and what the models make of it are a group, of these slices: `overview`, a picture of all of it; `image`, with
the true masks; and for each model the image through its slots, with the slots' masks, the true masks and the measures.
In every slice `difference` says by how much the models differ in each measure, so that each can be sorted by it.
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
"""Of slots and objects in the app: without the two that are too bright for the app's white figures."""


def connect() -> ModuleType:
    """FiftyOne, with its database: its own, which it starts, or that of FIFTYONE_DATABASE_URI.

    Raises:
        UserError: FiftyOne is not installed, or has no database.
    """
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    os.environ.setdefault("FIFTYONE_SHOW_PROGRESS_BARS", "false")
    try:
        import fiftyone
    except ImportError:
        raise UserError("view opens FiftyOne, which needs the extra 'coco': make setup EXTRAS=coco") from None
    logging.getLogger("fiftyone.core.odm.database").setLevel(logging.ERROR)  # MongoDB 6 will do for long
    try:
        fiftyone.list_datasets()
    except Exception as error:  # of many kinds: there is no server, it does not start, it does not answer
        reason = " ".join(str(error).split())[:120]
        raise UserError("FiftyOne has no database: make setup EXTRAS=coco installs its server; or name your MongoDB "
                        f"with FIFTYONE_DATABASE_URI=mongodb://HOST:PORT ({reason})") from None  # fmt: skip
    return fiftyone


def make_dataset(fo: ModuleType, out: Path, about: dict[str, Any], looks: dict[str, list[Look]]) -> Any:
    """A data set that stays in FiftyOne's database, named after the folder `out`; it replaces the earlier one of this
    folder. Saved views sort it by each difference or, of one model, by each measure; the largest come first."""
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
    """Serve the app, on the first of the saved views, until Ctrl-C or, unless `remote`, until its last page is closed.
    It answers to this machine alone."""
    from fiftyone.core.service import ServiceListenTimeout

    view = dataset.load_saved_view(dataset.list_saved_views()[0])
    scheme = dataset.app_config.color_scheme
    for _ in range(3):  # FiftyOne waits a minute, which a busy machine may exceed when it reads all modules
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
    """The regions of a label map (H, W), but 0, as detections with instance masks; None for None."""
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
