"""`implicit-slate view`: images and models' outputs in FiftyOne's app, sorted by how much the models differ.

It shows each image with its true masks and, for each model, the reconstruction through the slots, the slots' masks,
MSE, cross-entropy, FG-ARI, mBO, and the spectral norm of the slot Jacobian.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from implicit_slate.errors import ArgumentParser, UserError, nearest, port, positive
from implicit_slate.evaluation.command import default_folder, find_checkpoints
from implicit_slate.files import write_atomically
from implicit_slate.run_folder import LAST, RunFolder

EXAMPLES = """implicit-slate view runs/demo                                  # one cell of each gradient mode
implicit-slate view runs/demo --only clip=off --only seed=1    # the same, of another setting
implicit-slate view sprites-implicit sprites-unrolled --data experiments/sprites.yaml
implicit-slate view runs/demo --remote    # then, at home: ssh -L 5151:localhost:5151 HOST, and open localhost:5151"""

LISTING = "view.json"
"""Describes what a view shows. A folder with this file is a view, and may be overwritten."""


def main(argv: Sequence[str]) -> int:
    arguments, data_options = parser().parse_with_data_options(argv)
    checkpoints = choose(arguments.targets, dict(arguments.only))
    first = arguments.targets[0]
    out = (arguments.out or (first / "view" if first.is_dir() else default_folder(first, "view"))).absolute()
    if out.exists() and not (out / LISTING).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already, and is not a view; nothing is written there")

    from implicit_slate.evaluation.data import describe_data, load_images
    from implicit_slate.evaluation.in_fiftyone import connect, make_dataset, show
    from implicit_slate.evaluation.look import load_models, look, table

    data = describe_data(checkpoints[0], arguments.data, data_options)
    images = load_images(data, arguments.split)
    models = load_models(checkpoints, images, data)
    fiftyone = connect()  # so that its errors come before the work
    about = {"models": dict(zip(models, map(str, checkpoints))), "split": arguments.split, "data": data}
    write_atomically(out / LISTING, json.dumps(about, indent=1) + "\n")
    looks = look(models, images, min(arguments.images, len(images)), out, arguments.split)
    write_atomically(out / "measures.csv", table(looks).to_csv(index=False))
    dataset = make_dataset(fiftyone, out, about, looks)
    print(f"{out}: {arguments.split} images and {', '.join(models)}; FiftyOne's data set: {dataset.name}", flush=True)
    if not arguments.no_app:
        show(fiftyone, dataset, arguments.remote, arguments.port)
    return 0


def parser() -> ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = ArgumentParser("implicit-slate view", __doc__, EXAMPLES, formatter_class=raw)
    parser.add_argument("targets", type=Path, nargs="+", metavar="RUN_DIR|CHECKPOINT", help="a grid's folder, or the "
                        "models to compare: checkpoints, folders of cells, names or files of models")  # fmt: skip
    parser.add_argument("--only", type=_assignment, action="append", default=[], metavar="AXIS=VALUE",
                        help="only cells of the grid with this value on an axis; may be repeated")  # fmt: skip
    parser.add_argument("--images", type=positive, default=100, metavar="N", help="the first N images; default: 100")
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="default: test")
    parser.add_data_option()
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures; default: "
                        "`view` in the folder of the run")  # fmt: skip
    parser.add_argument("--no-app", action="store_true", help="create FiftyOne's data set without opening the app")
    parser.add_argument("--remote", action="store_true", help="serve the app without opening a browser; Ctrl-C ends it")
    parser.add_argument("--port", type=port, default=5151, help="port of the app; default: 5151")
    return parser


def _assignment(text: str) -> tuple[str, str]:
    axis, equals, value = text.partition("=")
    if not (axis and equals and value):
        raise argparse.ArgumentTypeError(f"expected AXIS=VALUE, got {text!r}")
    return axis, value


def choose(targets: Sequence[Path], only: dict[str, str]) -> list[Path]:
    """The checkpoints or models to show. For a grid's folder: one complete cell of each gradient mode, with the same
    values on all other axes; of the combinations that most modes have, the first. For a cell's folder: its last
    checkpoint. Otherwise the target itself.

    Args:
        only: values that the cells of a grid must have, by axis.

    Raises:
        UserError: no cell matches, the grid has no such axis or value, or `only` is given but no target is a grid.
    """
    grids = [target for target in targets if target.is_dir() and not (target / LAST).exists()]
    if only and not grids:
        wanted = " ".join(f"--only {axis}={value}" for axis, value in only.items())
        raise UserError(f"{wanted}: selects cells of a grid, but {targets[0]} is not a grid's folder")
    chosen = []
    for target in targets:
        chosen += _one_of_each_mode(target, only) if target in grids else [target / LAST if target.is_dir() else target]
    return chosen


def _one_of_each_mode(target: Path, only: dict[str, str]) -> list[Path]:
    complete, run = find_checkpoints(target), RunFolder(target)
    axes = {cell: {axis: str(value) for axis, value in of.items()} for cell, of in run.cells.items()}
    known = {axis: {of.get(axis): None for of in axes.values()} for of in axes.values() for axis in of}
    for axis, value in only.items():
        if axis not in known:
            raise UserError(f"--only {axis}={value}: {target} has no such axis{nearest(axis, known)}")
        if value not in known[axis]:
            raise UserError(f"--only {axis}={value}: {target} has no such value{nearest(value, known[axis])}")
    settings: dict[str, dict[str | None, Path]] = {}
    for cell, of in axes.items():
        checkpoint = run.cell(cell) / LAST
        if checkpoint in complete and only.items() <= of.items():
            others = str({axis: value for axis, value in of.items() if axis != "gradient"})
            settings.setdefault(others, {}).setdefault(of.get("gradient"), checkpoint)
    if not settings:
        raise UserError(f"{target}: no complete cell has {', '.join(map('='.join, only.items()))}")
    return list(max(settings.values(), key=len).values())
