"""Types that say which values an argument may have, on the command line, in experiment files and in Python.

A `Checked` class refuses arguments that its signature does not allow. jsonargparse, which reads experiment files,
checks the same types with the same functions before it builds anything. Values are plain numbers and text.
"""

import contextlib
import difflib
import functools
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse.typing import register_type

from implicit_slate.errors import LARGEST_SEED, UserError, nearest

RESTRICTED: dict[str, type] = {}
"""All types made by `restricted`, by name."""
PLAIN = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path", NoneType: "null",
    list: "a list", tuple: "a list", dict: "a mapping",
}  # fmt: skip


class NotAllowed(ValueError):
    """Raised for jsonargparse when a type made by `restricted` does not allow a value."""


def restricted(name: str, base: type | None, needed: str, fits: Callable[[Any], bool]) -> Any:
    """Make a type for annotations: it allows the values of `base` for which `fits` is true. It has no instances.

    Args:
        base: `int`, `float` or `str`; None for any type.
        needed: a description of the allowed values.
        fits: function of a value; may also raise a `UserError`, with a more precise message.
    """

    def read(value: Any) -> Any:
        number = value
        if isinstance(value, str) and base in (int, float):
            with contextlib.suppress(ValueError):
                number = base(value)
        if not allows(kind, number):
            raise NotAllowed(f"expected {needed}. Got value: {value}")
        return number if base is None else base(number)

    home = sys._getframe(1).f_globals["__name__"]  # where pickle finds it by its name, as for `ddp_spawn`
    members = {"__doc__": needed, "__module__": home, "needed": needed, "base": base, "fits": staticmethod(fits)}
    kind = type(name, (base or object,), members)
    RESTRICTED[name] = kind
    register_type(kind, serializer=lambda value: value, deserializer=read, type_check=lambda value, kind: False)
    return kind


def is_known(what: str, name: str, known: Collection[str]) -> bool:
    """For `fits`: true if `name` is in `known`; otherwise raises a `UserError` that suggests the nearest known name."""
    if name not in known:
        raise UserError(f"unknown {what} {name!r}{nearest(name, known)}")
    return True


if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    Seed = int
    MultipleOf4 = int
    PositiveFloat = float
    NonNegativeFloat = float
    Share = float
    PositiveShare = float
    InnerShare = float
else:
    PositiveInt = restricted("PositiveInt", int, "a positive whole number", lambda value: value >= 1)
    NonNegativeInt = restricted("NonNegativeInt", int, "a whole number of at least 0", lambda value: value >= 0)
    Seed = restricted("Seed", int, f"a whole number from 0 to {LARGEST_SEED}", lambda value: 0 <= value <= LARGEST_SEED)
    MultipleOf4 = restricted("MultipleOf4", int, "a positive multiple of 4", lambda value: value >= 4 and not value % 4)
    PositiveFloat = restricted("PositiveFloat", float, "a number above 0", lambda value: value > 0)
    NonNegativeFloat = restricted("NonNegativeFloat", float, "a number of at least 0", lambda value: value >= 0)
    Share = restricted("Share", float, "a number from 0 to 1", lambda value: 0 <= value <= 1)
    PositiveShare = restricted("PositiveShare", float, "a number above 0, up to 1", lambda value: 0 < value <= 1)
    InnerShare = restricted("InnerShare", float, "a number between 0 and 1", lambda value: 0 < value < 1)


class Checked:
    """Base of classes whose constructors (and those of subclasses) raise a `UserError` for arguments that their
    annotations do not allow."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _checking(cls.__init__)  # type: ignore[method-assign]


def _checking(init: Callable) -> Callable:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(*args, **kwargs):
        check(init, signature.bind(*args, **kwargs).arguments)
        init(*args, **kwargs)

    return checked


def check(annotated: Any, values: Mapping[str, Any]) -> None:
    """Raise `UserError`, naming the first of `values` that the annotations of a function or class do not allow."""
    for name, hint in _hints(annotated).items():
        if name in values and not allows(hint, values[name]):
            raise UserError(refusal(name, hint, values[name]))


_hints = functools.cache(get_type_hints)


def allows(hint: Any, value: Any) -> bool:
    """Whether an annotation allows a value. Other kinds of annotations than those below are ignored."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return NoneType in inside if value is None else any(allows(one, value) for one in inside)
    if kind is Literal:
        return any(value == one and type(value) is type(one) for one in inside)
    if kind in (list, tuple):
        if kind is tuple and len(inside) != len(value if isinstance(value, (list, tuple)) else ()):
            return False
        return isinstance(value, (list, tuple)) and all(
            map(allows, inside if kind is tuple else inside * len(value), value)
        )
    if hint is int or hint is float:
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if hasattr(hint, "needed"):
        finite = hint.base is not float or (allows(float, value) and math.isfinite(value))
        return finite and (hint.base is None or allows(hint.base, value)) and hint.fits(value)
    return not isinstance(hint, type) or isinstance(value, hint)


def refusal(name: str, hint: Any, value: Any) -> str:
    """The error message for a value, such as `num_slots=six: expected a positive whole number`."""
    words = [word for one in (hint, *get_args(hint)) if get_origin(one) is Literal for word in get_args(one)]
    close = difflib.get_close_matches(str(value), map(str, words), n=1)
    hint_at = f"; did you mean {close[0]!r}?" if close else ""
    return f"{name}={'null' if value is None else value}: expected {describe(hint)}{hint_at}"


def describe(hint: Any) -> str:
    """A description of the values that an annotation allows."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        *first, last = dict.fromkeys(map(describe, inside))
        return f"{', '.join(first)} or {last}" if first else last
    if kind is Literal:
        return f"{'one of ' if len(inside) > 1 else ''}{', '.join(map(str, inside))}"
    if kind is tuple:
        return f"a list [{', '.join(map(describe, inside))}]"
    if kind is list:
        return f"a list of {describe(inside[0])}" if inside else "a list"
    return PLAIN.get(hint) or str(getattr(hint, "needed", getattr(hint, "__name__", hint)))
