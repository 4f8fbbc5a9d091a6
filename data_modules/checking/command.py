"""`implicit-slate data check KIND DIR`: holds a folder against the format of its data set.

Everything is decoded. What is wrong is printed line by line: path, what was expected, what was found.
Exit status: 0 all is well, 1 something is wrong in the data, 2 bad usage, such as a folder that is not there.
"""

import importlib
import os
from pathlib import Path

from data_modules.checking.survey import run
from implicit_slate.errors import ArgumentParser, UserError, nearest
from implicit_slate.files import write_atomically

KINDS = {
    "clevr-mirror": "scenes",
    "shapestacks": "shapestacks",
    "coco": "coco",
    "shapes3d": "shapes3d",
    "clevr": "clevr",
    "folder": "folder",
}


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="implicit-slate data check", description=__doc__)
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("folder", metavar="DIR", type=Path, help="the data set's folder")
    parser.add_argument("--fix-list", type=Path, metavar="FILE", help="write the names of the good ones to this file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    args = parser.parse_args(argv)
    if args.kind not in KINDS:
        raise UserError(f"data check: unknown kind {args.kind!r}{nearest(args.kind, KINDS)}")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be at least 1")
    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: expected the folder of a data set, found none")
    if args.fix_list is not None and args.fix_list.exists():
        raise UserError(f"--fix-list {args.fix_list}: exists already")

    kind = importlib.import_module(f"data_modules.checking.{KINDS[args.kind]}")
    survey = kind.survey(args.folder.absolute())
    findings = run(survey, args.workers)
    for line in (*findings.counts, *findings.problems):
        print(line)
    if findings.problems:
        bad = findings.total - len(findings.good)
        print(f"wrong: {len(findings.problems)} (above); {bad} of {findings.total} {survey.unit} are bad")
    else:
        print(f"nothing is wrong with {findings.total} {survey.unit}")
    if args.fix_list is not None:
        write_atomically(args.fix_list, "".join(f"{name}\n" for name in findings.good))
        print(f"{len(findings.good)} good {survey.unit} listed in {args.fix_list}")
    return 1 if findings.problems else 0
