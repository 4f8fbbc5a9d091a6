"""`implicit-slate export`: save the model of a checkpoint as a file to share, for `load_pretrained`."""

from pathlib import Path

from implicit_slate.errors import ArgumentParser, UserError
from implicit_slate.files import write_atomically


def parser() -> ArgumentParser:
    example = "implicit-slate export runs/demo/cells/ID/checkpoints/last.ckpt demo.safetensors"
    parser = ArgumentParser("implicit-slate export", __doc__, example)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a model with slots, or of a dVAE trained alone")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write")
    return parser


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from implicit_slate.models.dvae import DiscreteVAE
    from implicit_slate.models.portable import SUFFIX, build, to_safetensors
    from implicit_slate.training.checkpoints import load_trained, read_checkpoint
    from implicit_slate.training.dvae_module import load_dvae

    if args.out.suffix != SUFFIX:
        raise UserError(f"{args.out}: expected a name that ends in {SUFFIX}")
    if args.out.exists():
        raise UserError(f"{args.out}: exists already; it is not overwritten")

    checkpoint = read_checkpoint(args.checkpoint)
    settings = checkpoint.get("hyper_parameters")
    if isinstance(settings, dict) and settings.get("_class_path") == "implicit_slate.training.DVAEModule":
        settings = {name: settings.get(name) for name in ("vocab_size", "image_channels")}
        model = build(DiscreteVAE, settings, args.checkpoint)
        load_dvae(model, str(args.checkpoint))
    else:
        model = load_trained(args.checkpoint).model
    content = to_safetensors(model, settings, checkpoint.get("global_step"))
    write_atomically(args.out, content)
    size = sum(weight.numel() for weight in model.state_dict().values())
    print(f"{args.out}: a {type(model).__name__} of {size:,} numbers, {len(content):,} bytes")
    return 0
