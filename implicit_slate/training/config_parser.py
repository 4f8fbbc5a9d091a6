"""What jsonargparse says of a wrong configuration, as one line that begins with the key."""

import re
from collections.abc import Iterator

from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from implicit_slate.errors import UserError, nearest

# All that is read out of jsonargparse's sentences; tests/training/test_experiment_cli.py holds each of them.
KEY = re.compile(r'Parser key "([^"]+)"(?: element \d+)?:\s*(.*)', re.DOTALL)
UNKNOWN = re.compile(
    r"(?:Group '([^']+)' does not accept option|Subcommand '\w+' does not accept option|Option) '([^']+)'"
    r"|unrecognized arguments: --([^\s=]+)"
)
UNION = "Does not validate against any of the Union subtypes"
EXPECTED = re.compile(r"Expected an? ((?:<class |typing\.).*)")
TYPE = re.compile(r"<class '(?:builtins\.)?([^']+)'>|typing\.")


class ConfigParser(LightningArgumentParser):
    """A parser whose errors are exceptions that know it. jsonargparse makes those of a class's arguments of it, too."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        error = ArgumentError(None, str(message))
        error.parser = self
        raise error from ex


def explain(error: BaseException) -> str:
    """One line for an error of `ConfigParser`, or of a class that could not be instantiated.

    jsonargparse quotes in every exception the one that caused it, so the last cause is the sentence that tells. A
    `UserError` among the causes is taken as it is; an unknown key comes with the nearest one that exists.
    """
    path: list[str] = []
    sentence, union, parser = "", "", None
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return str(cause)
        parser = getattr(cause, "subcommand_parser", getattr(cause, "parser", parser))
        sentence = str(cause).strip()
        while found := KEY.match(sentence):
            key, sentence = found.groups()
            if path[-1:] != [key]:
                path.append(key)
                union = ""  # of the key around this one
        if sentence.startswith(UNION):
            union = sentence
    if found := UNKNOWN.search(sentence):
        known = [] if parser is None else list(parser.get_defaults().keys())
        return _unknown_key(path, ".".join(filter(None, found.groups())), known)
    reason, _, value = sentence.partition(". Got value: ")
    if EXPECTED.fullmatch(reason) and (types := EXPECTED.findall(union)):
        reason = f"Expected {' or '.join(types)}"
    reason = TYPE.sub(r"\1", " ".join(reason.splitlines()[0].split())).replace("NoneType", "null")
    key = ".".join(path) + (f"={value}" if value and "\n" not in value else "")
    return f"{key}: {reason}" if key else reason


def _unknown_key(path: list[str], name: str, known: list[str]) -> str:
    """The message for a `name` that a parser met below the keys of `path`; `known` are the parser's dotted keys."""
    prefix, parent = "".join(f"{key}." for key in path), name.rpartition(".")[0]
    siblings = [prefix + key for key in known if key.rpartition(".")[0] == parent]
    like = name
    if not parent or not siblings:  # then the first part of the name is what is unknown
        like = name.partition(".")[0]
        siblings = list(dict.fromkeys(prefix + key.partition(".")[0] for key in known))
    return f"unknown key {prefix + name!r}{nearest(prefix + like, siblings)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
