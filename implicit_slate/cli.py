"""The command `implicit-slate`."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from implicit_slate import __version__
from implicit_slate.errors import UserError, nearest


def lightning(argv: list[str]) -> int:
    from callbacks import Diverged
    from implicit_slate.training.experiment_cli import ExperimentCLI
    from implicit_slate.yaml_files import load_yaml

    for flag, value in zip(argv, argv[1:], strict=False):
        if flag in ("-c", "--config"):
            load_yaml(Path(value))  # for its errors, which name file and line
    try:
        ExperimentCLI(args=argv)
    except Diverged as error:
        print(f"implicit-slate: {error}", file=sys.stderr)
        return 1
    return 0


def ablate(argv: list[str]) -> int:
    from implicit_slate.ablation.command import main

    return main(argv[1:])


def report(argv: list[str]) -> int:
    from implicit_slate.ablation.report import main

    return main(argv[1:])


def evaluate(argv: list[str]) -> int:
    from implicit_slate.evaluation.command import main

    return main(argv[1:])


def generate(argv: list[str]) -> int:
    from implicit_slate.evaluation.generate import main

    return main(argv[1:])


def data(argv: list[str]) -> int:
    if len(argv) < 2 or argv[1] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<10}{text}" for name, (_, text) in DATA_ACTIONS.items())
        print(f"usage: implicit-slate data ACTION [--help]\n\n{rows}")
        return 0 if len(argv) > 1 else 2
    if argv[1] not in DATA_ACTIONS:
        raise UserError(f"data: unknown action {argv[1]!r}{nearest(argv[1], DATA_ACTIONS)}")
    command = importlib.import_module(DATA_ACTIONS[argv[1]][0])
    try:
        return command.main(argv[2:])
    except KeyboardInterrupt:
        print(f"stopped: data {argv[1]}", file=sys.stderr)
        return 130


def import_checkpoint(argv: list[str]) -> int:
    from implicit_slate.training.import_checkpoint import main

    return main(argv[1:])


DATA_ACTIONS = {
    "render": ("data_modules.rendering", "make scenes like those of CLEVR-Mirror, with instance masks"),
    "check": ("data_modules.checking", "hold a folder against its data set's format, and list what is wrong"),
    "download": ("data_modules.downloading", "fetch what has a stable public address"),
}

COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "fit": (lightning, "train: fit --config experiments/X.yaml [--model.gradient unrolled …]"),
    "validate": (lightning, "the validation losses of a checkpoint"),
    "test": (lightning, "the test losses of a checkpoint"),
    "ablate": (ablate, "run or resume a grid of ablations.yaml"),
    "report": (report, "rebuild a grid's report from its result files"),
    "evaluate": (evaluate, "MSE, PSNR, SSIM, FID, ARI and panels of a checkpoint, or of a grid's cells"),
    "generate": (generate, "images through the slots of a checkpoint, and the slots' masks"),
    "data": (data, "render, check or download data: data render --help"),
    "import-checkpoint": (import_checkpoint, "take over a checkpoint of the public SLATE code"),
}


def usage() -> str:
    rows = "\n".join(f"  {name:<19}{text}" for name, (_, text) in COMMANDS.items())
    return f"implicit-slate {__version__}\n\nusage: implicit-slate COMMAND [--help]\n\n{rows}"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the work failed, 2 bad usage or input (one line on stderr)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}")
        return COMMANDS[argv[0]][0](argv)
    except UserError as error:
        print(f"implicit-slate: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
