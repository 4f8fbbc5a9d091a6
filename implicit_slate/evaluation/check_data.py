"""`implicit-slate data check KIND DIR`: check that a folder has the format of its data set.

Reads and decodes everything that the data module would read; --data.KEY VALUE changes a setting of the module. Prints
one line per error: path, what was expected, what was found. Exit status: 0 no errors, 1 errors in the data, 2 bad
usage, such as a missing folder.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import data_modules
from data_modules.processes import in_threads, num_cores
from data_modules.progress import meter
from implicit_slate.errors import ArgumentParser, UserError, nearest, positive
from implicit_slate.files import check_writable, write_atomically

if TYPE_CHECKING:  # these import PyTorch, which `--help` does not need
    from data_modules.cached import CachedDataModule, Examined
    from data_modules.sources import Source

EXAMPLES = """implicit-slate data check clevr-mirror data/clevr_mirror
implicit-slate data check clevr part.hdf5 --data.num_train 900 --data.num_eval 50
implicit-slate data check folder photos --fix-list photos/good.txt"""


class Sample(NamedTuple):
    """An item of a data set that was read."""

    name: str
    """Its name in the list of good items (`--fix-list`)."""
    split: str
    examined: "Examined"


def check(module: "CachedDataModule", workers: int) -> tuple[list[Sample], list[str]]:
    """Read everything that `module` would read, in `workers` threads, with a progress bar on stderr.

    Returns:
        The samples, each with its own problems; and the problems of folders and lists.

    Raises:
        UserError: the folder has no data of this kind at all.
    """
    from data_modules.cached import Examined

    problems = module.problems = []
    samples = []

    def pieces(source: "Source") -> Iterator[Any]:
        try:
            yield from source.stored()
        except UserError as error:  # damaged such that nothing after it can be read
            problems.append(str(error))

    def read(split: str, source: "Source", piece: Any) -> Sample:
        try:
            examined = module.examine(source, piece)
        except UserError as error:
            examined = Examined([str(error)])
        return Sample(module.sample_name(piece), split, examined)

    sources = module.sources_to_check()
    with meter("check", _total(sources), unit=module.unit) as advance:
        for split, source in sources.items():
            for sample in in_threads(partial(read, split, source), pieces(source), workers):
                samples.append(sample)
                advance(1)
    module.conclude([sample.examined for sample in samples])
    return samples, problems


def _total(sources: "dict[str, Source]") -> int | None:
    try:
        counts = [(source.count(), source.PIECE) for source in sources.values()]
    except UserError:  # reading the data will report this error
        return None
    return None if (None, 1) in counts else sum(-(-count // length) for count, length in counts)


def _counts(samples: list[Sample], unit: str) -> Iterator[str]:
    """Lines with the numbers of samples by split, size and mode, and of objects."""
    splits = Counter(sample.split for sample in samples)
    if splits:
        yield ", ".join(f"{split} {count}" for split, count in splits.items()) + f" {unit}"
    examined = [sample.examined for sample in samples]
    sizes = Counter(seen.size for seen in examined if seen.size)
    for (width, height), count in sizes.most_common(3):
        yield f"{count} of {width} × {height} pixels"
    if len(sizes) > 3:
        yield f"{len(sizes) - 3} other sizes"
    modes = Counter(seen.mode for seen in examined if seen.size)
    for mode in sorted(modes.keys() - {"RGB"}):
        yield f"{modes[mode]} stored as {mode}, converted to RGB"
    numbers = [len(seen.labels) for seen in examined if seen.labels is not None]
    if numbers:
        yield f"objects in a mask: {min(numbers)} to {max(numbers)}, {sum(numbers) / len(numbers):.2f} in the mean"


def main(argv: Sequence[str]) -> int:
    args, options = parser().parse_with_data_options(argv)
    if args.kind not in data_modules.KINDS:
        raise UserError(f"data check: unknown kind {args.kind!r}{nearest(args.kind, data_modules.KINDS)}")
    name = data_modules.KINDS[args.kind]
    kind = getattr(data_modules, name)
    if not args.folder.is_dir() and not (kind.may_be_a_file and args.folder.is_file()):
        raise UserError(f"{args.folder}: expected the folder of a data set, found none")
    if args.fix_list is not None:
        if args.fix_list.exists():
            raise UserError(f"--fix-list {args.fix_list}: exists already")
        check_writable(args.fix_list.parent)

    from implicit_slate.evaluation.data import parse_data  # this imports PyTorch

    if any(option.partition("=")[0] == "--data.root" for option in options):
        raise UserError("data check: give the folder as DIR, not as --data.root")
    # The folder is not passed as an option, because YAML may read its name as something other than text.
    settings = parse_data([f"--data=data_modules.{name}", *options, "--data.root=."])["init_args"]
    module = kind(**settings | {"root": args.folder})
    samples, problems = check(module, args.workers)
    bad = [sample for sample in samples if sample.examined.problems]
    problems = list(dict.fromkeys([*problems, *(problem for sample in bad for problem in sample.examined.problems)]))
    for line in (*_counts(samples, module.unit), *problems):
        print(line.encode(errors="backslashreplace").decode())  # file names need not be UTF-8
    if problems:
        print(f"wrong: {len(problems)} (above); {len(bad)} of {len(samples)} {module.unit} are bad")
    else:
        print(f"nothing is wrong with {len(samples)} {module.unit}")
    if args.fix_list is not None:
        bad_names = {sample.name for sample in bad}
        good = [name for name in dict.fromkeys(sample.name for sample in samples) if name not in bad_names]
        write_atomically(args.fix_list, "".join(f"{name}\n" for name in good))
        print(f"{len(good)} good names listed in {args.fix_list}")
    return 1 if problems else 0


def parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate data check", __doc__, EXAMPLES)
    kind = parser.add_argument("kind", metavar="KIND", help=", ".join(data_modules.KINDS))
    kind.completer = lambda **_: data_modules.KINDS  # for completion in the shell
    parser.add_argument("folder", metavar="DIR", type=Path, help="the data set's folder, or a CLEVR file")
    parser.add_argument("--fix-list", type=Path, metavar="FILE", help="write the names of the good items to this file")
    parser.add_argument("--workers", type=positive, default=num_cores(), help="threads; default: one per core")
    return parser
