"""Split lists: text files with a name a line."""

from collections.abc import Container
from itertools import combinations
from pathlib import Path


def check_lists(files: dict[str, Path], known: Container[str], expected: str) -> tuple[list[str], dict[str, list[str]]]:
    """What is wrong with the lists of a data set's splits, and their names.

    Args:
        files: the list of each split.
        known: the names that there are.
        expected: what a line should name, for the message.
    """
    problems, names = [], {}
    for split, file in files.items():
        names[split], seen = [], set()
        try:
            lines = file.read_text().splitlines()
        except FileNotFoundError:
            problems.append(f"{file}: expected the list of a split, found nothing")
            continue
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{file}: expected a list, one name a line ({error})")
            continue
        for number, line in enumerate(lines, 1):
            if not (name := line.strip()):
                continue
            if name not in known:
                problems.append(f"{file}, line {number}: expected {expected}, found nothing at {name}")
            elif name in seen:
                problems.append(f"{file}, line {number}: expected every name once, found {name} again")
            seen.add(name)
            names[split].append(name)
        if not names[split]:
            problems.append(f"{file}: expected names, one a line; the split is empty")
    for one, other in combinations(files, 2):
        for name in sorted(set(names[one]) & set(names[other])):
            problems.append(f"{files[other]}: expected names that are not in {files[one]}, found {name}")
    return problems, names


def split_line(name: str, names: dict[str, list[str]]) -> str:
    return f"{name}: " + ", ".join(f"{split} {len(listed)}" for split, listed in names.items())
