"""The command `implicit-slate`."""

import os
import pkgutil
import sys
from collections.abc import Callable

from implicit_slate import __version__
from implicit_slate.errors import ArgumentParser, UserError, explaining_memory, nearest
from implicit_slate.processes import stop_as_by_ctrl_c
from implicit_slate.provenance import revision, versions

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("implicit_slate.training.command:fit", "train a model: fit --config experiments/X.yaml"),
    "validate": ("implicit_slate.training.command:validate", "compute the validation losses of a checkpoint"),
    "test": ("implicit_slate.training.command:test", "compute the test losses of a checkpoint"),
    "ablate": ("implicit_slate.ablation.command:main", "run or resume a grid of ablations.yaml"),
    "tune": (
        "implicit_slate.ablation.tuning.command:main",
        "search for the best learning rate, clip and warmup of each gradient mode",
    ),
    "cell": ("implicit_slate.ablation.cell:main", "run or resume one prepared cell of a grid"),
    "report": ("implicit_slate.report:main", "rewrite a grid's report from its result files"),
    "tensorboard": ("implicit_slate.ablation.tensorboard:main", "start TensorBoard on a grid, with short cell names"),
    "evaluate": (
        "implicit_slate.evaluation.command:main",
        "compute MSE, PSNR, SSIM, FID, ARI and panels for a checkpoint, or for a grid's cells",
    ),
    "generate": ("implicit_slate.evaluation.on_images:generate", "send images through a model's slots; draw masks"),
    "view": ("implicit_slate.evaluation.view:main", "show images, reconstructions and masks in FiftyOne's app"),
    "fixed-points": (
        "implicit_slate.evaluation.on_images:fixed_points",
        "test whether trained slots are fixed points, and how near each gradient mode is to the exact one",
    ),
    "data render": ("data_modules.rendering.generate:main", "render scenes like CLEVR-Mirror's, with instance masks"),
    "data check": ("implicit_slate.evaluation.check_data:main", "list the errors in a data set's folder"),
    "data download": ("data_modules.downloading.command:main", "fetch the data sets that have a stable public address"),
    "data write": ("implicit_slate.evaluation.write_data:main", "write an experiment's images and masks as a folder"),
    "export": ("implicit_slate.training.export:main", "save a checkpoint's model as a file for `load_pretrained`"),
    "import-checkpoint": (
        "implicit_slate.training.import_checkpoint:main",
        "convert a checkpoint of the public SLATE code",
    ),
    "doctor": ("implicit_slate.doctor:main", "check what this machine has, what is missing, and how to fix it"),
}
"""Each command's function, as module:name, and its description. The function takes the arguments after the command, and
returns the exit status. The same module has a function that makes its parser: `parser` for `main`, `fit_parser` for
`fit`. It imports PyTorch only when the command runs, so that help and completion are fast."""

MORE = """

  --version          versions and commit

completion in bash or zsh: eval "$(register-python-argcomplete implicit-slate)\""""


def usage(prefix: str = "") -> str:
    """The commands that begin with `prefix`, one line each."""
    lines = "\n".join(f"  {name:<19}{about}" for name, (_, about) in COMMANDS.items() if name.startswith(prefix))
    return f"implicit-slate {__version__}\n\nusage: implicit-slate COMMAND [--help]\n\n{lines}{'' if prefix else MORE}"


def function(name: str) -> Callable[[list[str]], int]:
    return pkgutil.resolve_name(COMMANDS[name][0])


def parser(name: str) -> ArgumentParser:
    """The parser of a command. `fit`, `validate` and `test` also have many options that are not in it, which begin with
    --model, --data or --trainer."""
    return pkgutil.resolve_name(f"{COMMANDS[name][0]}_parser".replace(":main_", ":"))()


def version() -> str:
    """The versions of the project and of packages that affect results, and the commit in a source tree."""
    made_with = versions()
    commit = f" (commit {revision()})" if revision() else ""
    others = ", ".join(f"{name} {number}" for name, number in made_with.items() if name != "implicit-slate")
    return f"implicit-slate {made_with['implicit-slate']}{commit}, {others}"


def complete() -> None:
    """Print the completions of the command line in COMP_LINE for argcomplete's shell function, and exit."""
    import argcomplete

    top = ArgumentParser("implicit-slate")
    top.add_argument("--version", action="store_true")
    commands = top.add_subparsers()
    data = commands.add_parser("data").add_subparsers()
    words = os.environ["COMP_LINE"].split()[1:]
    for name in COMMANDS:
        *group, last = name.split()
        written = name.split() == words[: len(group) + 1]  # avoids importing the modules of other commands
        parents = [parser(name)] if written else []
        (data if group else commands).add_parser(last, parents=parents, add_help=not written)
    argcomplete.autocomplete(top, always_complete_options=False)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 if done, 1 if the work failed, 2 for bad usage or input (one line on stderr), 130 if stopped by
    Ctrl-C or SIGTERM."""
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        complete()
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--version"]:
        print(version())
        return 0
    length = 2 if argv[:1] == ["data"] else 1
    name, rest = " ".join(argv[:length]), argv[length:]
    if len(argv) < length or argv[length - 1] in ("-h", "--help"):
        print(usage("data " if length == 2 else ""))
        return 0 if len(argv) >= length else 2
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
        if name not in ("fit", "cell"):  # which have their own way to end at a signal
            stop_as_by_ctrl_c()
        with explaining_memory():
            return function(name)(rest)
    except UserError as error:
        print(f"implicit-slate: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # for example a full disk, or a file without read permission
        if error.errno is None:
            raise
        print(f"implicit-slate: {error.filename or name}: {error.strerror}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning turns a KeyboardInterrupt into a SystemExit, and SIGTERM into one without a status.
        if isinstance(end, SystemExit) and end.code is not None and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        print(f"stopped: {name}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
