"""Errors in the user's input, and failed training, as opposed to bugs; and the parser of commands."""

import argparse
import contextlib
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from textwrap import indent
from typing import NoReturn

LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy accepts."""


class UserError(ValueError):
    """Bad usage or input. The message is one line that names the file, key or value; the command exits with 2."""


class TrainingError(RuntimeError):
    """Training failed although the input is valid. The message is one line; the command exits with 1."""


TOO_LARGE = re.compile(
    r"(?:tried|unable) to allocate [\d.]+ \w+|storage size calculation overflowed|overflow when unpacking long"
    "|maximum allowed dimension exceeded",
    re.IGNORECASE,
)
"""What PyTorch and NumPy say if there is not enough memory, or no address for so much."""


@contextlib.contextmanager
def explaining_memory() -> Iterator[None]:
    """Within this context, an exception of Python, NumPy or PyTorch about too little memory becomes a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of several types
        found = TOO_LARGE.search(str(error))
        if found is None and not isinstance(error, MemoryError):
            raise
        what = f" ({found[0]})" if found else ""
        raise UserError(f"not enough memory{what}; smaller batches or a smaller model need less") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"` for the known name closest to `name`, otherwise all known names; "" if there are none."""
    known = [str(k) for k in known]
    if not known:
        return ""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` where argparse prints its usage and exits.

    Args:
        prog, description, options: as for argparse.
        examples: lines printed unchanged at the end of the help.
    """

    def __init__(self, prog: str, description: str | None = None, examples: str = "", **options):
        super().__init__(prog, description=description, **options)
        self.examples = examples

    def format_help(self) -> str:
        return super().format_help() + (f"\nexamples:\n{indent(self.examples, '  ')}\n" if self.examples else "")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.partition(' ')[2]}: {message.removeprefix('argument ')} (see --help)")

    def add_data_option(self) -> None:
        """Add `--data`; use it with `parse_with_data_options`."""
        self.add_argument("--data", metavar="CLASS|FILE", help="a data module, or an experiment file whose data to "
                          "use; --data.KEY VALUE changes one setting; default: the training data's")  # fmt: skip

    def parse_with_data_options(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The parsed arguments, and the options `--data.KEY VALUE` unparsed. Raises `UserError` for unknown options."""
        others: list[str] = []
        options: list[str] = []
        has_value = False
        for word in argv:  # argparse would take the values of these options, which it does not know, for arguments
            of_data = word.startswith("--data.") or (has_value and not word.startswith("--"))
            (options if of_data else others).append(word)
            has_value = word.startswith("--data.") and "=" not in word
        arguments, unknown = self.parse_known_args(others)
        if unknown:
            self.error(f"unknown option {next((word for word in unknown if word.startswith('-')), unknown[0])}")
        return arguments, options


def _whole(needed: str, least: int, most: float) -> Callable[[str], int]:
    """An argparse type for whole numbers in a range."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected {needed}, got {text!r}")
        return int(text)

    return read


seed = _whole(f"a whole number from 0 to {LARGEST_SEED}", 0, LARGEST_SEED)
positive = _whole("a positive number", 1, math.inf)
port = _whole("a number from 0 to 65535", 0, 65535)
