"""`implicit-slate evaluate`: reconstruction, segmentation, FID and more of a checkpoint, or of every cell of a grid."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from implicit_slate.errors import ArgumentParser, UserError, nearest, positive
from implicit_slate.evaluation.settings import BY_DEFAULT, METRICS, SPLITS, Settings
from implicit_slate.files import write_atomically

DESCRIPTION = """Exit status: 0 done, 1 a process was killed, 2 bad usage or input (nothing is written), 130 stopped.
The same command goes on.

What is left: <split>.json, .md (rows of a table), .csv (every image), .png (panels), in the folder `evaluation` of the
run, beside its `checkpoints`. A grid's report is made anew, with what was measured."""


def main(argv: Sequence[str]) -> int:
    arguments, data_options = _parse(argv)
    checkpoints = [checkpoint for target in arguments.targets for checkpoint in find_checkpoints(target)]
    if len(checkpoints) > 1 and (arguments.json or arguments.out):
        raise UserError("--json and --out are for one checkpoint; the results of a grid lie in its cells")
    import torch

    from implicit_slate.ablation.report import write_report
    from implicit_slate.evaluation.data import describe_data
    from implicit_slate.evaluation.outputs import markdown
    from implicit_slate.evaluation.run import evaluate
    from implicit_slate.evaluation.workers import Devices

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = Settings(
        split=arguments.split,
        images=arguments.images,
        draws=arguments.draws,
        metrics=arguments.metrics,
        batch_size=arguments.batch_size,
        weights=arguments.fid_weights,
        seed=arguments.seed,
    )
    results, said = [], set()
    try:
        with Devices(_devices(arguments)) as devices:
            for checkpoint in checkpoints:
                out, data = arguments.out or default_folder(checkpoint), describe_data(checkpoint, data_options)
                results.append(evaluate(checkpoint, data, out, settings, devices))
                for note in set(results[-1]["notes"]) - said:
                    print(note, file=sys.stderr)
                said.update(results[-1]["notes"])
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except BrokenProcessPool:
        print("implicit-slate: a process ended unasked, perhaps for want of memory; the same command goes on, with a "
              "smaller --batch-size it begins anew", file=sys.stderr)  # fmt: skip
        return 1
    except torch.OutOfMemoryError:
        raise UserError(f"--batch-size {arguments.batch_size}: not enough memory on the device") from None
    if arguments.json:
        write_atomically(arguments.json, json.dumps(results[0], indent=1) + "\n")
    print(markdown(results), end="")
    for target in arguments.targets:
        print(write_report(target) if target.is_dir() else arguments.out or default_folder(target))
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    def metrics(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(filter(None, text.split(","))))
        for name in names:
            if name not in METRICS:
                raise argparse.ArgumentTypeError(f"unknown metric {name!r}{nearest(name, METRICS)}")
        if not names:
            raise argparse.ArgumentTypeError(f"expected names out of {', '.join(METRICS)}")
        return names

    parser = ArgumentParser(
        "implicit-slate evaluate", description=__doc__, epilog=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("targets", type=Path, nargs="+", metavar="CHECKPOINT",
                        help="a checkpoint, or the folder of a grid: then of every complete cell")  # fmt: skip
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--images", type=positive, metavar="N", help="the first N images only")
    parser.add_argument("--draws", type=positive, default=3, metavar="D",
                        help="draws of the initial slots, over which the spread is given; default: 3")  # fmt: skip
    parser.add_argument("--metrics", type=metrics, metavar="NAME,…",
                        help="; ".join(f"{name}: {text}" for name, text in METRICS.items())
                        + f"; default: those of {', '.join(BY_DEFAULT)} that can be measured")  # fmt: skip
    parser.add_argument(
        "--fid-weights",
        type=Path,
        metavar="PATH",
        help="of Inception: a file or a folder; default: where `data download fid-weights` puts them",
    )
    parser.add_argument("--batch-size", type=positive, default=50, help="images at a time on a device; default: 50")
    parser.add_argument("--devices", type=positive, help="GPUs, or processes on a CPU, that share the images; "
                        "default: all GPUs, or 1")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the initial slots; default: 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder for what is left")
    parser.add_argument("--data", metavar="CLASS|FILE", help="a data module, or an experiment file whose data is "
                        "taken; --data.KEY VALUE changes one setting; default: the data of the training")  # fmt: skip
    arguments, rest = parser.parse_known_args(argv)
    unknown = [option for option in rest if option.startswith("-") and not option.startswith("--data.")]
    if unknown or (rest and not rest[0].startswith("--data.")):
        raise UserError(f"evaluate: unknown option {(unknown or rest)[0]} (see --help)")
    return arguments, ["--data", arguments.data][: 2 * bool(arguments.data)] + rest


def find_checkpoints(target: Path) -> list[Path]:
    """The checkpoint itself; of a grid's folder the last of every complete cell. `UserError` if there is none."""
    if not target.exists():
        raise UserError(f"{target}: no such file or folder")
    if not target.is_dir():
        return [target]
    found = []
    for file in sorted(target.glob("cells/*/result.json")):
        try:
            complete = json.loads(file.read_text())["status"] == "complete"
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{file}: expected the result of a cell, as JSON with a status") from None
        checkpoint = file.parent / "checkpoints" / "last.ckpt"
        if complete and checkpoint.exists():
            found.append(checkpoint)
    if not found:
        raise UserError(f"{target}: expected the folder of a grid, with cells that are complete; found none")
    return found


def default_folder(checkpoint: Path) -> Path:
    """`evaluation` beside the run's `checkpoints`; `<name>.evaluation` beside a checkpoint that lies elsewhere."""
    if checkpoint.absolute().parent.name == "checkpoints":
        return checkpoint.parent.parent / "evaluation"
    return checkpoint.with_name(f"{checkpoint.stem}.evaluation")


def _devices(arguments: argparse.Namespace) -> int:
    import torch

    available = torch.cuda.device_count()
    if arguments.devices and available and arguments.devices > available:
        raise UserError(f"--devices {arguments.devices}: there are {available} GPUs")
    return arguments.devices or max(available, 1)
