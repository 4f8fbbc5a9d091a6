"""The help of the commands `fit`, `validate` and `test`, without importing PyTorch. `experiment_cli` runs them."""

import ast
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import callbacks
import data_modules
from implicit_slate import training
from implicit_slate.errors import ArgumentParser
from implicit_slate.processes import end_with_parent
from implicit_slate.yaml_files import experiment_files, leaves, load_yaml

PACKAGES = {"model": training, "data": data_modules, "trainer.callbacks": callbacks}
ABOUT = {
    "fit": "Train a model on its data.",
    "validate": "Measure the validation losses of a checkpoint.",
    "test": "Measure the test losses of a checkpoint.",
}
EXAMPLES = {
    "fit": """implicit-slate fit --config experiments/demo_joint.yaml
implicit-slate fit --config experiments/demo_joint.yaml --model.gradient unrolled --model.num_slots 5
implicit-slate fit --config experiments/demo_joint.yaml --model.optimization.clip_norm null
implicit-slate fit --config experiments/sprites.yaml --trainer.devices 2 --trainer.strategy ddp
implicit-slate fit --config experiments/sprites.yaml --ckpt_path CKPT""",
    "validate": "implicit-slate validate --config experiments/sprites.yaml --ckpt_path CKPT",
    "test": "implicit-slate test --config experiments/sprites.yaml --ckpt_path CKPT",
}


def classes(package) -> dict[str, str]:
    """A package's configurable classes, without its errors and abstract classes, each with the first sentence of its
    docstring; read without importing them."""
    found = {}
    for name, home in package.HOMES.items():
        tree = ast.parse((Path(package.__file__).parent / f"{home}.py").read_text())
        node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        bases = [ast.unparse(base) for base in node.bases]
        if bases and not bases[0].endswith("Error") and "ABC" not in bases:
            sentence = re.split(r"\n\n|\.\s", ast.get_docstring(node) or "")[0]
            found[f"{package.__name__}.{name}"] = " ".join(sentence.split()).removesuffix(".")
    return found


class ExperimentParser(ArgumentParser):
    """For help and completion only: it knows the most common options, not each `--model.KEY`, `--data.KEY` and
    `--trainer.KEY`."""

    def format_help(self) -> str:
        lists = []
        for key, package in PACKAGES.items():
            about = classes(package)
            lists.append(f"\n{key}, one of these; its options: {self.prog} --{key}.help {next(iter(about))}")
            lists += [f"  {name:<48}{text}" for name, text in about.items()]
        usage, _, rest = super().format_help().partition("\nexamples:\n")
        return usage + "\n".join(lists) + f"\n\nexamples:\n{rest}"


def _parser(command: str) -> ArgumentParser:
    parser = ExperimentParser(
        f"implicit-slate {command}", ABOUT[command], EXAMPLES[command], allow_abbrev=False,
        usage=f"implicit-slate {command} --config FILE [--model.KEY VALUE] [--data.KEY VALUE] [--trainer.KEY VALUE] …",
    )  # fmt: skip
    add = partial(parser.add_argument, metavar="VALUE")
    parser.add_argument("-c", "--config", metavar="FILE", help="an experiment file (YAML); of several, the later "
                        "ones change the earlier ones")  # fmt: skip
    for key, examples in (
        ("model", "--model.num_slots 5, --model.gradient unrolled"),
        ("data", "--data.root DIR, --data.batch_size 16"),
        ("trainer", "--trainer.max_steps 1000, --trainer.devices 2; the keys are those of Lightning's Trainer"),
    ):
        add(f"--{key}.KEY", help=f"changes one setting of the file: {examples}; null turns off what may be off")
    for key, what in ("model", "another model"), ("data", "other data"):
        option = parser.add_argument(f"--{key}", metavar="CLASS", help=f"{what} than the file's")
        option.completer = lambda key=key, **_: classes(PACKAGES[key])  # for completion in the shell
    for setting in _settings_on_the_line():
        parser.add_argument(setting)
    parser.add_argument("--ckpt_path", metavar="FILE", help="the checkpoint to go on from, or to measure")
    parser.add_argument("--seed_everything", metavar="SEED", help="default: 0")
    parser.add_argument("--print_config", action="store_true", help="print the complete configuration, and run nothing")
    return parser


def _settings_on_the_line() -> list[str]:
    """For completion in the shell: options for all settings of the experiment files on the command line."""
    files = filter(Path.is_file, experiment_files(os.environ.get("COMP_LINE", "").split()))
    keys = {key for file in files for key, _ in leaves(load_yaml(file)) if not key.endswith("class_path")}
    return sorted(f"--{key}" for key in keys if key.startswith(("model.", "data.", "trainer.")))


def _run(command: str, argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        _parser(command).print_help()
        return 0
    end_with_parent()  # if Lightning started this process, as one of several
    from implicit_slate.training.experiment_cli import run

    return run(command, list(argv))


fit, validate, test = (partial(_run, command) for command in ABOUT)
fit_parser, validate_parser, test_parser = (partial(_parser, command) for command in ABOUT)
