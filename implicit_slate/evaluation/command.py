"""`implicit-slate evaluate`: reconstruction, segmentation, FID and more, of a checkpoint or of every cell of a grid."""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from zipfile import is_zipfile

from data_modules.processes import num_cores
from implicit_slate.errors import ArgumentParser, UserError, nearest, positive, seed
from implicit_slate.evaluation import BY_DEFAULT, METRICS
from implicit_slate.files import check_writable, read_json, write_atomically
from implicit_slate.processes import end_with_parent, expecting_children
from implicit_slate.run_folder import LAST, RunFolder, run_of

EPILOG = """Exit status: 0 done, 2 bad usage or input (nothing is written), 130 stopped.
Finished evaluations are not repeated.

Files: <split>.json, .md (rows of a table), .csv (every image), .png (panels) and _panels.npz, in the folder
`evaluation` of the run, beside its `checkpoints`. Earlier results are replaced there, other files never.
The report of a grid is rebuilt with the new numbers."""

EXAMPLES = """implicit-slate evaluate runs/demo
implicit-slate evaluate CKPT --data.root DIR --images 200 --draws 1
implicit-slate evaluate CKPT --metrics reconstruction,segmentation --json numbers.json"""


def main(argv: Sequence[str]) -> int:
    arguments, data_options = parser().parse_with_data_options(argv)
    for target in arguments.targets:  # exported models cannot be made with random weights, for comparison
        if not target.exists() or target.suffix == ".safetensors":
            found = "an exported model" if target.exists() else "no such file or folder"
            raise UserError(f"{target}: {found}; evaluate needs a checkpoint (.ckpt), or a grid's folder")
    checkpoints = [checkpoint for target in arguments.targets for checkpoint in find_checkpoints(target)]
    if len(checkpoints) > 1 and (arguments.json or arguments.out):
        raise UserError("--json and --out are for one checkpoint; the results of a grid are in its cells")
    folders = {default_folder(checkpoint): checkpoint for checkpoint in checkpoints}
    if len(folders) < len(checkpoints):
        both = next(checkpoint for checkpoint in checkpoints if checkpoint not in folders.values())
        raise UserError(f"{both}: another checkpoint has its results in the same folder, "
                        f"{default_folder(both)}; evaluate one at a time, with --out")  # fmt: skip
    if arguments.out:  # otherwise results go to a folder that has only such results
        others = arguments.out.glob(f"{arguments.split}[._]*")
        _check_replaceable(arguments.out / f"{arguments.split}.json", *others)
    if arguments.json:
        _check_replaceable(arguments.json)
        check_writable(arguments.json.parent)
    end_with_parent()
    import torch
    from lightning import Trainer
    from lightning.pytorch.plugins.environments import LightningEnvironment

    from implicit_slate.evaluation.data import describe_data
    from implicit_slate.evaluation.outputs import markdown
    from implicit_slate.evaluation.run import Evaluator

    for name in ("lightning.pytorch", "lightning.fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers")  # a batch is only a list of indices
    warnings.filterwarnings("ignore", "Using `DistributedSampler`")  # images that it repeats are counted once
    warnings.filterwarnings("ignore", "The `srun` command is available")  # we start our processes ourselves
    warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated")  # between Lightning 2.6 and torch 2.15
    warnings.filterwarnings("ignore", ".*all_gather is deprecated")  # the same
    gpus = torch.cuda.device_count()
    room, what = (gpus, "GPUs") if gpus else (num_cores(), "cores")
    if arguments.devices and arguments.devices > room:
        raise UserError(f"--devices {arguments.devices}: this machine has {room} {what}")
    devices = arguments.devices or max(gpus, 1)
    trainer = Trainer(
        accelerator="gpu" if gpus else "cpu",
        devices=devices,
        plugins=LightningEnvironment(),  # we start the processes, not `srun`, also within a SLURM job
        barebones=True,  # neither loggers nor checkpoints; we show our own progress bar, on stderr
    )
    settings = ("split", "images", "draws", "metrics", "batch_size", "fid_weights", "seed", "masks", "iterations")
    evaluator = Evaluator(trainer, **{name: getattr(arguments, name) for name in settings})
    results = []
    try:
        with expecting_children():  # with several devices Lightning starts this command again for the others
            for checkpoint in checkpoints:
                data = describe_data(checkpoint, arguments.data, data_options)
                results.append(evaluator.evaluate(checkpoint, data, arguments.out or default_folder(checkpoint)))
    except (KeyboardInterrupt, SystemExit):  # Lightning turns a KeyboardInterrupt into a SystemExit
        if trainer.is_global_zero:
            print("stopped; the same command evaluates what is not done yet", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError:
        raise UserError(f"--batch-size {arguments.batch_size}: not enough memory on the device") from None
    except UserError:
        if trainer.is_global_zero:
            raise
        return 2  # every process has the same error; only the first one prints it
    if not trainer.is_global_zero:
        return 0
    for note in dict.fromkeys(note for result in results for note in result["notes"]):
        print(note, file=sys.stderr)
    if arguments.json:
        write_atomically(arguments.json, json.dumps(results[0], indent=1) + "\n")
    print(markdown(results), end="")
    for target in arguments.targets:
        if target.is_dir():
            from implicit_slate.report import write_report

            print(write_report(target))
        else:
            print(arguments.out or default_folder(target))
    return 0


def _check_replaceable(result: Path, *others: Path) -> None:
    """Raise `UserError` for the first of the files that exists, unless `result` was written by this command."""
    if result.exists() and not result.is_file():
        raise UserError(f"{result}: not a file")
    if "fingerprint" not in (read_json(result) or {}):
        for file in (result, *others):
            if file.exists():
                raise UserError(f"{file}: exists already, and was not made by an evaluation; it is not overwritten")


def parser() -> ArgumentParser:
    parser = ArgumentParser(
        "implicit-slate evaluate", __doc__, EXAMPLES, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("targets", type=Path, nargs="+", metavar="CHECKPOINT",
                        help="a checkpoint, or the folder of a grid (every complete cell)")  # fmt: skip
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="default: test")
    parser.add_argument("--images", type=positive, metavar="N", help="the first N images only")
    parser.add_argument("--draws", type=positive, default=3, metavar="D",
                        help="draws of the initial slots, to measure the spread; default: 3")  # fmt: skip
    parser.add_argument("--metrics", type=_metrics, metavar="NAME,…",
                        help="; ".join(f"{name}: {text}" for name, text in METRICS.items())
                        + f"; default: those of {', '.join(BY_DEFAULT)} that can be measured")  # fmt: skip
    parser.add_argument("--masks", choices=("nearest", "bilinear"), default="nearest", help="how masks with one value "
                        "per token are upsampled to the image; default: nearest")  # fmt: skip
    parser.add_argument("--iterations", type=positive, metavar="N", help="iterations of the forward solve; modes such "
                        "as `implicit` still apply f once more after it; default: as in training")  # fmt: skip
    parser.add_argument("--fid-weights", type=Path, metavar="PATH", help="weights of the Inception network, a file or "
                        "its folder; default: where `data download fid-weights` puts them")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=50, help="images per batch and device; default: 50")
    parser.add_argument("--devices", type=positive, help="GPUs, or processes on a CPU, that share the images; "
                        "default: all GPUs, or 1")  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="seed of the initial slots; default: 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file; an existing "
                        "file is replaced only if it is such a result")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder for the files")
    parser.add_data_option()
    return parser


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(f"unknown metric {name!r}{nearest(name, METRICS)}")
    return names


def find_checkpoints(target: Path) -> list[Path]:
    """The last checkpoints of all complete cells if `target` is a grid's folder; otherwise `target` itself.

    Complete cells whose checkpoint is missing or truncated are left out, and a line on stderr says so.

    Raises:
        UserError: a folder that is not a grid's, or has no complete cells.
    """
    if not target.is_dir():
        return [target]
    if files := sorted((target / "checkpoints").glob("*.ckpt")):
        raise UserError(f"{target}: not the folder of a grid; name a checkpoint in it, such as {files[-1]}")
    run = RunFolder(target)
    complete = [run.cell(cell) / LAST for cell in run.cells if run.status(cell) == "complete"]
    found = [checkpoint for checkpoint in complete if is_zipfile(checkpoint)]
    for checkpoint in complete:
        if checkpoint not in found:
            print(f"implicit-slate: {checkpoint}: torn or gone; its cell is left out", file=sys.stderr)
    if not found:
        raise UserError(f"{target}: expected a grid with complete cells, found none")
    return found


def default_folder(checkpoint: Path, kind: str = "evaluation") -> Path:
    """The folder `<kind>` next to the run's `checkpoints`; for other checkpoints `<name>.<kind>` next to the file."""
    run = run_of(checkpoint)
    return checkpoint.with_name(f"{checkpoint.stem}.{kind}") if run is None else run / kind
