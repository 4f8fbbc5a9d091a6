"""Generation through the key-value cache beside recomputing every prefix, in one run: `python -m benchmarks.generation`.

The plain path is what the public code does: for each of the N tokens the transformer reads all tokens before it again.
It is spared the logits of the earlier positions, which it would not need. Its N prefixes would take minutes, so it is
timed at a few lengths, in the middle of equal parts of the sequence, each measurement beside a whole generation through the
cache; the time of a part is that of its middle times its length (the cost grows a little faster than linearly, so
this is rather too little than too much).
"""

import argparse
import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from implicit_slate import SLATE

PAPER = dict(  # as in experiments/clevr_mirror_96.yaml
    image_size=96,
    vocab_size=4096,
    d_model=192,
    num_slots=12,
    slot_size=192,
    slot_mlp_size=192,
    num_blocks=8,
    num_heads=8,
)


class Comparison(NamedTuple):
    """Seconds to generate all tokens of a batch."""

    cached: float
    plain: float

    @property
    def ratio(self) -> float:
        return self.plain / self.cached


def plain_step(model: SLATE, tokens: Tensor, slots: Tensor) -> Tensor:
    """The next token (B,) after tokens (B, L), with everything computed anew."""
    index = F.pad(tokens + 1, (1, 0))
    embedded = model.dictionary(index) + model.positions[:, : index.shape[1]]
    features = model.transformer(embedded, model.slot_projection(slots))
    return model.to_logits(features[:, -1]).argmax(-1)


@torch.no_grad()
def compare(model: SLATE, batch_size: int, parts: int) -> Comparison:
    """Time both paths in turn, `parts` times; the cached path is a median."""
    model.eval()
    slots = model.sample_slots(batch_size)
    device = slots.device

    def seconds(work) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    tokens = model.generate(slots)  # also warms up
    for length in (1, model.num_tokens // 2):
        expected = tokens[:, length]
        if not torch.equal(plain_step(model, tokens[:, :length], slots), expected):
            raise RuntimeError(f"the two paths disagree on token {length}")
    cached, plain = [], 0.0
    for part in range(parts):
        length = (2 * part + 1) * model.num_tokens // (2 * parts)
        plain += seconds(lambda length=length: plain_step(model, tokens[:, :length], slots)) * model.num_tokens / parts
        cached.append(seconds(lambda: model.generate(slots)))
    return Comparison(statistics.median(cached), plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--parts", type=int, default=8, help="prefix lengths at which the plain path is timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = SLATE(**PAPER).to(arguments.device)
    result = compare(model, arguments.batch_size, arguments.parts)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{model.num_tokens} tokens, V = {model.vocab_size}, 8 blocks, batch {arguments.batch_size}, {where}")
    print(f"cached {result.cached:.2f} s, plain {result.plain:.1f} s, ratio {result.ratio:.1f}")


if __name__ == "__main__":
    main()
