"""Lists that define splits: text files with one name per line."""

from collections.abc import Callable, Container
from itertools import combinations
from pathlib import Path


def read_list(
    file: Path, known: Container[str] | None, wrong: Callable[[str], None], suspect: Callable[[str], None]
) -> list[str]:
    """The names in a list, in order, without unknown names.

    Args:
        known: the existing names; None: any name is accepted.
        wrong: called with each error: no file, no names, an unknown name.
        suspect: called with each warning: a repeated name.
    """
    names: list[str] = []
    try:
        lines = file.read_text("utf-8-sig", errors="surrogateescape").split("\n")  # as Python decodes file names
    except FileNotFoundError:
        wrong(f"{file}: expected a list there, one name per line, found nothing")
        return names
    except OSError as error:
        wrong(f"{file}: expected a list, one name per line; it cannot be read ({error})")
        return names
    seen = set()
    for number, line in enumerate(lines, 1):
        name = line if known is not None and line in known else line.strip()  # a name may begin with a space
        if name and known is not None and name not in known:
            wrong(f"{file}, line {number}: expected a name that is there, found nothing at {name}")
        elif name:
            if name in seen:
                suspect(f"{file}, line {number}: expected every name once, found {name} again")
            seen.add(name)
            names.append(name)
    if not names:
        wrong(f"{file}: expected names, one per line; the split is empty")
    return names


def compare_lists(lists: dict[Path, list[str]], suspect: Callable[[str], None]) -> None:
    """Calls `suspect` for every name that two of the lists share."""
    for one, other in combinations(lists, 2):
        for name in sorted(set(lists[one]) & set(lists[other])):
            suspect(f"{other}: expected names that are not in {one}, found {name}")
