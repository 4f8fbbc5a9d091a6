"""The command `implicit-slate`."""

import importlib
import os
import sys

from implicit_slate import __version__
from implicit_slate.errors import UserError, nearest

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("implicit_slate.training.experiment_cli:fit", "train a model: fit --config experiments/X.yaml"),
    "validate": ("implicit_slate.training.experiment_cli:validate", "the validation losses of a checkpoint"),
    "test": ("implicit_slate.training.experiment_cli:test", "the test losses of a checkpoint"),
    "ablate": ("implicit_slate.ablation.command:main", "run or resume a grid of ablations.yaml"),
    "cell": ("implicit_slate.ablation.cell:main", "run or resume one prepared cell of a grid"),
    "report": ("implicit_slate.report:main", "write a grid's report again from its result files"),
    "evaluate": (
        "implicit_slate.evaluation.command:main",
        "MSE, PSNR, SSIM, FID, ARI and panels of a checkpoint, or of a grid's cells",
    ),
    "generate": ("implicit_slate.evaluation.generate:main", "send images through a model's slots; its masks"),
    "fixed-points": (
        "implicit_slate.evaluation.fixed_points:main",
        "whether trained slots are fixed points, and how near each gradient mode is to the exact one",
    ),
    "data render": ("data_modules.rendering.generate:main", "make scenes like CLEVR-Mirror's, with instance masks"),
    "data check": ("data_modules.checking:main", "list what is wrong with a data set's folder"),
    "data download": ("data_modules.downloading.command:main", "fetch the data sets that have a stable public address"),
    "data write": ("implicit_slate.evaluation.write_data:main", "write an experiment's images and masks as a folder"),
    "export": ("implicit_slate.training.export:main", "a checkpoint's model as a file that `load_pretrained` reads"),
    "import-checkpoint": (
        "implicit_slate.training.import_checkpoint:main",
        "convert a checkpoint of the public SLATE code",
    ),
}
"""Each command's function, as module:name, and what it does. The function takes the arguments after the command and
returns the exit status; its module is imported only when the command is given, because some take seconds."""


def usage(prefix: str = "") -> str:
    """The commands that begin with `prefix`, one line each."""
    lines = "\n".join(f"  {name:<19}{about}" for name, (_, about) in COMMANDS.items() if name.startswith(prefix))
    return f"implicit-slate {__version__}\n\nusage: implicit-slate COMMAND [--help]\n\n{lines}"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the work failed, 2 bad usage or input (one line on stderr), 130 stopped by Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    length = 2 if argv[:1] == ["data"] else 1
    name, rest = " ".join(argv[:length]), argv[length:]
    if len(argv) < length or argv[length - 1] in ("-h", "--help"):
        print(usage("data " if length == 2 else ""))
        return 0 if len(argv) >= length else 2
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
        module, _, function = COMMANDS[name][0].partition(":")
        return getattr(importlib.import_module(module), function)(rest)
    except UserError as error:
        print(f"implicit-slate: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"stopped: {name}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
