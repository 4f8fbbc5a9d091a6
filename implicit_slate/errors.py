"""Mistakes in what the user gave, told apart from faults of the program."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad usage or input. The message is one line that names the file, key or value; the command exits with status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"` for the known name closest to `name`, else the list of all known names."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
