"""The arguments of the commands `generate` and `fixed-points`, without importing PyTorch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from implicit_slate.errors import ArgumentParser, positive, seed

MODEL = "a checkpoint, a file of `implicit-slate export`, or the name of a model that comes with the project"
GENERATE = "Reconstruct image files through the slots of a model, and draw the slots' masks."
GENERATE_EXAMPLES = """implicit-slate generate CKPT photos/ --out generated
implicit-slate generate sprites-implicit photo.png --out generated --temperature 1 --top-p 0.9"""
FIXED_POINTS = """Are trained slots fixed points, and how near is each gradient mode to the exact one?

After the n iterations of training, a mode's gradient is off for two reasons: the mode leaves something out, and the
slots are not at a fixed point, so even the exact gradient means nothing. So everything is measured twice: after n
iterations, and after 64, only on the images that have converged by then."""
FIXED_POINTS_EXAMPLES = """implicit-slate fixed-points runs/demo
implicit-slate fixed-points CKPT --images 64 --data experiments/sprites.yaml"""


def generate(argv: Sequence[str]) -> int:
    arguments = generate_parser().parse_args(argv)
    from implicit_slate.evaluation.generate import generate

    return generate(arguments)


def fixed_points(argv: Sequence[str]) -> int:
    arguments, data_options = fixed_points_parser().parse_with_data_options(argv)
    from implicit_slate.evaluation.fixed_points import fixed_points

    return fixed_points(arguments, data_options)


def generate_parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate generate", GENERATE, GENERATE_EXAMPLES)
    parser.add_argument("checkpoint", type=Path, help=MODEL)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG or JPEG files, or folders of "
                        "them; rotated upright by their EXIF data, cropped to the largest central square, and "
                        "resized to the model's size")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for reconstructions/, masks/ (255: the whole pixel) and panels.png")  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default: the most likely token each "
                        "time; 1 samples from the model's distribution")  # fmt: skip
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the fewest tokens whose probabilities "
                        "add up to at least P")  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="seed of the initial slots and of sampling; default: 0")
    parser.add_argument("--batch-size", type=positive, default=16, help="images per batch; default: 16")
    return parser


def fixed_points_parser() -> ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = ArgumentParser("implicit-slate fixed-points", FIXED_POINTS, FIXED_POINTS_EXAMPLES, formatter_class=raw)
    parser.add_argument("target", type=Path, metavar="CHECKPOINT", help=f"{MODEL}; or a grid's folder: measures "
                        "every complete cell, and writes the table there as fixed_points.csv")  # fmt: skip
    parser.add_argument("--images", type=positive, default=16, metavar="N", help="the first N test images; default: 16")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the initial slots; default: 0")
    parser.add_data_option()
    return parser
