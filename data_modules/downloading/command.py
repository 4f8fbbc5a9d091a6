"""`implicit-slate data download KIND --out DIR`: download data that has a stable public address.

fid-weights, the network used for FID, are stored in torch's cache unless --out is given.

Exit status: 0 everything is there, 1 a download failed (the same command continues it), 2 bad usage. Asking
for a data set without a public address is also bad usage; the message says where to get it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data_modules.downloading.catalog import FID_WEIGHTS, KINDS, NO_ADDRESS, select
from implicit_slate.errors import ArgumentParser, UserError

EXAMPLES = """implicit-slate data download fid-weights
implicit-slate data download shapestacks --out data/shapestacks"""


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    remotes = select(args.kind, args.base_address, args.only)
    if args.out is None and args.kind != FID_WEIGHTS:
        parser().error("the following arguments are required: --out")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: expected a folder")
    from data_modules.downloading.transfer import DownloadError, fetch

    try:
        if args.kind == FID_WEIGHTS:
            from data_modules.downloading.fid_weights import download  # imports torch
            from implicit_slate.metrics.inception import default_folder

            path, said = download(args.out or default_folder())
            print(f"{path}: {said}")
            return 0
        for remote in remotes:
            print(f"{args.out / remote.name}: {fetch(remote, args.out)}")
    except DownloadError as error:
        print(f"implicit-slate: {error}", file=sys.stderr)
        return 1
    archives = [remote.name for remote in remotes if remote.name.endswith((".zip", ".tar.gz"))]
    if archives:
        print(
            f"to unpack, in {args.out}: "
            + "; ".join(f"unzip -q {name}" if name.endswith(".zip") else f"tar xzf {name}" for name in archives)
        )
    return 0


def parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate data download", __doc__, EXAMPLES)
    kind = parser.add_argument("kind", metavar="KIND", help=", ".join([*KINDS, *NO_ADDRESS]))
    kind.completer = lambda **_: KINDS  # for the shell
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to; default for fid-weights: torch's cache"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="fetch only this file (repeatable)")
    parser.add_argument("--base-address", metavar="URL", help="fetch the same files from below this address")
    return parser
