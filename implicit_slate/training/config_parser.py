"""Turn jsonargparse's errors about a configuration into one line that begins with the key."""

import ast
import functools
import operator
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, set_loader
from lightning.pytorch.cli import LightningArgumentParser

import callbacks
import data_modules
import implicit_slate
from implicit_slate.allowed import PLAIN, RESTRICTED, NotAllowed, refusal
from implicit_slate.errors import UserError, nearest
from implicit_slate.yaml_files import load_setting

# All patterns that are matched with jsonargparse's messages; tests/training/test_experiment_cli.py covers each of them.
KEY = re.compile(r'Parser key "([^"]+)"(?: element \d+)?:\s*(.*)', re.DOTALL)
UNKNOWN = re.compile(
    r"(?:Group '([^']+)' does not accept option|Subcommand '\w+' does not accept option|Option) '([^']+)'"
    r"|unrecognized arguments: --([^\s=]+)"
)
NO_CLASS = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'$")
UNION = "Does not validate against any of the Union subtypes"
NEEDED = re.compile(
    r"Not of type (?P<restricted>\w+):|Expected an? (?:typing\.Literal(?P<words>\[.*?\])|<class '(?P<plain>[^']+)'>)"
)
VALUE = re.compile(r"(?:Got|Given) value: (?P<value>.*)")
NOT_OWN = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")} | {
    Path(package.__file__).parent for package in (implicit_slate, callbacks, data_modules)
}  # fmt: skip
"""Folders of code in which one looks for no mistake of one's own."""
BY_NAME = {kind.__name__: kind for kind in PLAIN}

# Its own loader reads 010 as 8 and 1:30 as 90 in files, but not in options.
set_loader("yaml", load_setting, (yaml.YAMLError, ValueError, KeyError, RecursionError))


class BadKey(UserError):
    """An error in the value of `key`, a dotted key of the configuration; empty if no single key is wrong."""

    def __init__(self, message: str, key: str):
        super().__init__(message)
        self.key = key


class ConfigParser(LightningArgumentParser):
    """A parser whose errors are exceptions with a reference to it. jsonargparse also uses this class for the parsers of
    a class's arguments."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        error = ArgumentError(None, str(message))
        error.parser = self
        raise error from ex


def explain(error: BaseException) -> BadKey:
    """Describe in one line an error of `ConfigParser`, or of a class that could not be instantiated.

    Every jsonargparse exception quotes its cause, so the innermost cause has the actual message. The message of a
    `UserError` among the causes is used unchanged; for an unknown key the nearest existing one is suggested.
    """
    path: list[str] = []
    sentence, union, parser = "", "", None
    for cause in _causes(error):
        if isinstance(cause, NotAllowed):
            break  # already quoted by the exception around it
        if isinstance(cause, UserError):
            sentence = str(cause)
            break
        parser = getattr(cause, "subcommand_parser", getattr(cause, "parser", parser))
        sentence = str(cause).strip()
        if isinstance(cause, ModuleNotFoundError):
            sentence += "; if it is your own, PYTHONPATH must name its folder"
        elif found := NO_CLASS.match(sentence):
            module = sys.modules[found["module"]]
            sentence += nearest(found["name"], getattr(module, "__all__", dir(module)))  # ours import when asked
        while found := KEY.match(sentence):
            key, sentence = found.groups()
            if path[-1:] != [key]:
                path.append(key)
                union = ""  # belongs to the enclosing key
        if sentence.startswith(UNION):
            union = sentence
    key = ".".join(path)
    if found := UNKNOWN.search(sentence):
        known = [] if parser is None else list(parser.get_defaults().keys())
        name = ".".join(filter(None, found.groups()))
        return BadKey(_unknown_key(path, name, known), ".".join([*path, name]))
    value = found["value"] if (found := VALUE.search(union or sentence)) else ""
    if key and NEEDED.match(sentence):
        value = "null" if value == "None" else value
        return BadKey(refusal(key, functools.reduce(operator.or_, _needed(union or sentence)), value), key)
    if found := re.search(r"argument after \*\* must be a mapping, not (\w+)", sentence):
        value = found[1].replace("NoneType", "null")  # `optimization` is our only group of settings
        return BadKey(f"optimization={value}: expected a group of settings", "")
    reason = " ".join(sentence.splitlines()[0].split()) if sentence else type(error).__name__
    reason += _place(cause)
    return BadKey(f"{key}: {reason}" if key else reason, key)


def _place(error: BaseException) -> str:
    """Where in somebody's own module an error arose: `" (KeyError at mine.py, line 7)"`. Nothing in what is installed
    or ours, whose sentences are about settings."""
    frames = [] if isinstance(error, UserError) else traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in NOT_OWN):
            return f" ({type(error).__name__} at {file.name}, line {frame.lineno})"
    return ""


def _needed(sentences: str) -> Iterator[Any]:
    """The types that jsonargparse's messages list as the allowed ones."""
    for found in NEEDED.finditer(sentences):
        if found["restricted"]:
            name = found["restricted"]
            yield RESTRICTED.get(name) or BY_NAME.get(name) or type(name, (), {})
        elif found["words"]:
            yield Literal[tuple(ast.literal_eval(found["words"]))]
        else:
            name = found["plain"].rpartition(".")[2]
            yield BY_NAME.get(name) or type(name, (), {})


def _unknown_key(path: list[str], name: str, known: list[str]) -> str:
    """The message for an unknown `name` below the keys of `path`; `known` are the parser's dotted keys."""
    prefix, parent = "".join(f"{key}." for key in path), name.rpartition(".")[0]
    siblings = [prefix + key for key in known if key.rpartition(".")[0] == parent]
    like = name
    if not parent or not siblings:  # the first part of the name is unknown
        like = name.partition(".")[0]
        siblings = list(dict.fromkeys(prefix + key.partition(".")[0] for key in known))
    return f"unknown key {prefix + name!r}{nearest(prefix + like, siblings)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
