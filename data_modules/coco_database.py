"""COCO's annotations read through FiftyOne, once: a mask image for every image, and a list of them.

FiftyOne keeps what it reads in a MongoDB server. It works here in a process of its own, with a server of its own in a
folder of its own: FiftyOne's settings are read as it is imported, a database client must not be forked into loaders,
and a FiftyOne session of the user's shares neither server nor data sets with us. Nothing is left running.
"""

import atexit
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_modules.progress import meter, track
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically

SETUP = "`make setup EXTRAS=coco` sets it up, docs/coco.md says how"
FIELD = "instances"
MARK = "implicit-slate: "  # before the line for the user, as FiftyOne writes there, too

# Ends the server when this process closes the pipe to it, or is killed.
GUARD = 'exec 3<&0; "$@" 3<&- 2>/dev/null & server=$!; { read -r _ <&3; kill $server 2>/dev/null; } & wait $server'


class Split(NamedTuple):
    """A split of COCO-2017 on disk."""

    name: str  # FiftyOne's: train, validation
    images: Path  # the folder of its images
    annotations: Path  # instances_*.json
    max_samples: int  # read the first so many images, by id


class Index(NamedTuple):
    """What was read of a split, as `index.json` keeps it beside the masks."""

    images: list[str]  # by id; the mask of a.jpg is masks/a.png
    num_instances: int
    num_crowds: int  # annotations of crowds, which no mask shows


def read_index(folder: Path) -> Index:
    return Index(**json.loads((folder / "index.json").read_text()))


def server_binary() -> Path:
    """The database server that came with FiftyOne. UserError where there is none that runs."""
    spec = importlib.util.find_spec("fiftyone")
    if spec is None or importlib.util.find_spec("pycocotools") is None:
        raise UserError("COCO is read through FiftyOne, which is not installed; `make setup EXTRAS=coco` adds it")
    binary = Path(spec.submodule_search_locations[0], "db", "bin", "mongod")
    try:
        subprocess.run([binary, "--version"], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{binary}: FiftyOne has no database server there; {SETUP}") from None
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        raise UserError(f"{binary}: FiftyOne's database server does not run here ({reason}); {SETUP}") from None
    return binary


def import_splits(splits: Sequence[Split], zoo: Path | None, out: Path, database_dir: Path) -> None:
    """Writes a split's masks and index to `out/<its name>`, for each split. A split whose index is there is whole.

    Args:
        zoo: the zoo's folder, if the splits are of a copy there; else None.
        database_dir: an empty folder, for the database server's files.

    Raises:
        UserError: no FiftyOne, no server, annotations or images that are not as expected, a full disk.
    """
    server = "" if "FIFTYONE_DATABASE_URI" in os.environ else str(server_binary())
    request = {
        "splits": [split._asdict() for split in splits],
        "zoo": bool(zoo),
        "out": out,
        "server": server,
        "database_dir": database_dir,
    }
    modules = str(Path(__file__).resolve().parents[1])
    settings = {
        "PYTHONPATH": os.pathsep.join([modules, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "FIFTYONE_LOGGING_LEVEL": "ERROR",
        **({"FIFTYONE_DATASET_ZOO_DIR": str(zoo)} if zoo else {}),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "data_modules.coco_database", json.dumps(request, default=str)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
        start_new_session=True,
    )
    said = ""
    try:
        said = process.stdout.read()  # ends when the last process that holds the pipe has ended: the server
    finally:
        process.stdin.close()
        process.stdout.read()
        status = process.wait()
    if status == 2:
        raise UserError(said.rpartition(MARK)[2].splitlines()[0])
    if status:
        raise RuntimeError(f"reading COCO through FiftyOne ended with status {status}: {said[-2000:]}")


def label_map(masks: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], height: int, width: int) -> np.ndarray:
    """One map of an image's instances.

    Args:
        masks: bool (h, w), each cropped to its box.
        corners: (top, left) of each box.

    Returns:
        uint8 (height, width): 0 = background, i = the i-th instance. Where instances overlap, the one of the smaller
        area is on top, and the later one of two of the same area.
    """
    labels = np.zeros((height, width), np.uint8)
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        (top, left), (h, w) = corners[i], masks[i].shape
        window = labels[top : top + h, left : left + w]
        window[masks[i][: window.shape[0], : window.shape[1]]] = i + 1
    return labels


# From here on: what the process with FiftyOne does.


@contextmanager
def database_server(binary: Path, folder: Path) -> Iterator[str]:
    """A database server with its files in `folder`, for as long as the block, or this process, lives; its address."""
    log = folder / "mongod.log"
    options = ["--dbpath", folder, "--logpath", log, "--port", "0", "--bind_ip", "127.0.0.1", "--nounixsocket"]
    server = subprocess.Popen(["sh", "-c", GUARD, "sh", binary, *options], stdin=subprocess.PIPE)
    try:
        while (port := _port(log)) is None:
            if server.poll() is not None:
                raise UserError(f"{folder}: FiftyOne's database server does not start there ({_last_error(log)})")
            time.sleep(0.05)
        yield f"mongodb://127.0.0.1:{port}"
    finally:
        server.stdin.close()
        server.wait()


def _port(log: Path) -> int | None:
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    ready = [line for line in lines if '"Waiting for connections"' in line and line.endswith("\n")]
    return json.loads(ready[0])["attr"]["port"] if ready else None


def _last_error(log: Path) -> str:
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    errors = [line for line in lines if line["s"] in "EF"]
    return f"{errors[0]['msg']}: {errors[0].get('attr', {}).get('error', '')}" if errors else "it says nothing"


def _check(split: Split, zoo: bool) -> int:
    """What FiftyOne would meet with a traceback, or with a download. The number of images that it will read."""
    files = {name for name in os.listdir(split.images) if not name.startswith(".")}
    made = split.images.with_name("labels.json")  # FiftyOne's own list of what a copy in the zoo holds
    source = made if zoo and made.exists() else split.annotations
    try:
        images = json.loads(source.read_bytes())["images"]
        listed = [image["file_name"] for image in sorted(images, key=lambda image: image["id"])]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: expected COCO's annotations, JSON with `images` ({error!r})") from None
    if zoo and source != made:
        if stray := sorted(files - set(listed)):
            raise UserError(f"{split.images / stray[0]}: expected only images that {source} lists")
        listed = [name for name in listed if name in files]
    elif zoo and len(listed) < len(files):
        raise UserError(f"{made}: lists {len(listed)} of the {len(files)} images there now; delete it, to have it anew")
    listed = listed[: split.max_samples]
    if not listed:
        raise UserError(f"{source}: expected a list of the images in {split.images}, found none")
    for name in listed:
        if name not in files:
            raise UserError(f"{split.images / name}: expected the image that {source} lists, found nothing")
    return len(listed)


@contextmanager
def _loaded(split: Split, zoo: bool, count: int) -> Iterator:
    """The split as a FiftyOne data set, which is deleted at the end."""
    import fiftyone
    import fiftyone.zoo

    name = f"implicit-slate-{uuid.uuid4().hex}"
    options = {"label_types": ["segmentations"], "label_field": FIELD, "max_samples": split.max_samples}
    try:
        try:
            with meter(f"COCO {split.name}: annotations through FiftyOne", count, unit="images") as advance:
                options["progress"] = _follow(advance)
                if zoo:
                    dataset = fiftyone.zoo.load_zoo_dataset("coco-2017", split=split.name, dataset_name=name, **options)
                else:
                    dataset = fiftyone.Dataset.from_dir(
                        dataset_type=fiftyone.types.COCODetectionDataset,
                        data_path=str(split.images),
                        labels_path=str(split.annotations),
                        name=name,
                        **options,
                    )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{split.annotations}: FiftyOne cannot read it ({error!r})") from error
        yield dataset
    finally:
        if fiftyone.dataset_exists(name):
            fiftyone.delete_dataset(name)


def _write(samples: Iterable, images: Path, out: Path) -> None:
    names, num_instances, num_crowds = [], 0, 0
    for sample in samples:
        name = os.path.relpath(sample.filepath, images)
        labels = sample[FIELD] if sample.has_field(FIELD) else None
        detections = labels.detections if labels else []
        things = [thing for thing in detections if not thing.get_attribute_value("iscrowd", 0)]
        if len(things) > 255:
            raise UserError(f"{sample.filepath}: expected at most 255 instances, found {len(things)}")
        width, height = sample.metadata.width, sample.metadata.height
        # FiftyOne crops a mask at int(round(y)), int(round(x)); the division by the image's size and back is not exact
        corners = [
            (round(round(thing.bounding_box[1] * height, 6)), round(round(thing.bounding_box[0] * width, 6)))
            for thing in things
        ]
        target = (out / "masks" / name).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        masks = [thing.get_mask().astype(bool) for thing in things]
        Image.fromarray(label_map(masks, corners, height, width)).save(target)
        names.append(name)
        num_instances, num_crowds = num_instances + len(things), num_crowds + len(detections) - len(things)
    index = Index(names, num_instances, num_crowds)
    write_atomically(out / "index.json", json.dumps(index._asdict()))


def _follow(advance: Callable[[int], None]) -> Callable:
    """What FiftyOne calls with its own progress bar, which it does not show."""
    done = 0

    def follow(bar) -> None:
        nonlocal done
        if bar.iteration > done:
            advance(bar.iteration - done)
            done = bar.iteration

    return follow


def _end_with_parent() -> None:
    def watch() -> None:
        os.read(0, 1)  # nothing is ever written there: it returns when the parent has closed it, or is gone
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _main(request: dict) -> None:
    splits = [Split(s["name"], Path(s["images"]), Path(s["annotations"]), s["max_samples"]) for s in request["splits"]]
    counts = [_check(split, request["zoo"]) for split in splits]
    if request["server"]:
        stack = ExitStack()
        address = stack.enter_context(database_server(Path(request["server"]), Path(request["database_dir"])))
        atexit.register(stack.close)  # before FiftyOne registers what it does with the database at the end
        os.environ["FIFTYONE_DATABASE_URI"] = address
    for split, count in zip(splits, counts, strict=True):
        with _loaded(split, request["zoo"], count) as dataset:
            if len(dataset) != count:
                raise UserError(f"{split.annotations}: expected {count} images in FiftyOne, found {len(dataset)}")
            samples = track(dataset.iter_samples(), f"COCO {split.name}: masks", count, unit="images")
            _write(samples, split.images, Path(request["out"], split.name))


def _one_line(error: Exception, request: dict) -> str | None:
    """What the parent tells the user; None: a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ConnectionError) or type(error).__module__.startswith(("pymongo.", "mongoengine.")):
        reason = str(error).splitlines()[0].split(" (")[0]
        if not request["server"]:
            return f"FIFTYONE_DATABASE_URI: the database server there does not answer ({reason})"
        return f"{request['database_dir']}: FiftyOne's database server does not answer ({reason}); is the disk full?"
    if isinstance(error, OSError):
        return f"{error.filename or request['out']}: {error.strerror or error}"
    return None


if __name__ == "__main__":
    _end_with_parent()
    given = json.loads(sys.argv[1])
    try:
        _main(given)
    except Exception as error:
        line = _one_line(error, given)
        if line is None:
            raise
        print(f"{MARK}{line}", flush=True)
        sys.exit(2)
