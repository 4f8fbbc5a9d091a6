"""`implicit-slate import-checkpoint`: convert a checkpoint of the public SLATE code into one of ours."""

import io
from pathlib import Path

from implicit_slate.errors import ArgumentParser, UserError
from implicit_slate.files import write_atomically

EXAMPLE = """implicit-slate import-checkpoint PUBLIC.pt OUT.ckpt \\
    --num-slots 3 --num-iterations 3 --num-slot-heads 1 --num-heads 4"""


def parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate import-checkpoint", __doc__, EXAMPLE)
    parser.add_argument("public", type=Path, help="a state dict, or a training checkpoint that holds it under 'model'")
    parser.add_argument("out", type=Path, help="the checkpoint to write")
    parser.add_argument("--num-slots", type=int, required=True)
    parser.add_argument("--num-iterations", type=int, required=True)
    parser.add_argument("--num-slot-heads", type=int, required=True)
    parser.add_argument("--num-heads", type=int, required=True, help="heads of the transformer")
    parser.add_argument("--gradient", default="unrolled", help="unrolled (as the public code trains), or implicit")
    return parser


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.out.exists():
        raise UserError(f"{args.out}: exists already; it is not overwritten")
    import lightning as L
    import torch

    from implicit_slate.models.public_checkpoint import load_public_state

    given = {name: value for name, value in vars(args).items() if name not in ("public", "out")}
    model, settings = load_public_state(args.public, **given)
    checkpoint = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "hyper_parameters": settings,
        "pytorch-lightning_version": L.__version__,
    }
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomically(args.out, buffer.getvalue())
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {settings}")
    return 0
