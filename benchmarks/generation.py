"""`python -m benchmarks.generation`: generation with the key-value cache, compared with recomputing every prefix.

The plain method is that of the public code: for each of the N tokens, the transformer processes all previous tokens
again (but here without the logits of earlier positions). All N prefixes would take minutes, so the sequence is divided
into a few equal parts; the prefix length at the middle of each is timed, and counts for every token of that part. The
cost grows slightly faster than linearly with the length, so this errs on the low side.
"""

import argparse
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import training_step
from benchmarks.common import DEVICE, describe, make_console, make_table, shown, timed
from benchmarks.training_step import COMMON
from implicit_slate import SLATE
from implicit_slate.errors import positive
from implicit_slate.training.allocator import keep_freed_memory

SETTINGS = {"64×64, V=1024, K=3": 8, "96×96, V=4096, K=12": 4}
"""Settings of `benchmarks.training_step`, and the batch size."""


def plain_step(model: SLATE, tokens: Tensor, slots: Tensor) -> Tensor:
    """The next token (B,) after tokens (B, L), without a cache."""
    index = F.pad(tokens + 1, (1, 0))
    embedded = model.dictionary(index) + model.positions[:, : index.shape[1]]
    features = model.transformer(embedded, model.slot_projection(slots))
    return model.to_logits(features[:, -1]).argmax(-1)


@torch.no_grad()
def measure(model: SLATE, batch_size: int, parts: int) -> tuple[float, float]:
    """Seconds to generate all tokens of a batch, with the cache (the median of `parts` timings) and without."""
    model.eval()
    slots = model.sample_slots(batch_size)
    device = slots.device.type
    tokens = model.generate(slots)  # also the warm-up
    for length in (1, model.num_tokens // 2):
        if not torch.equal(plain_step(model, tokens[:, :length], slots), tokens[:, length]):
            raise RuntimeError(f"the two methods disagree on token {length}")
    cached, plain = [], 0.0
    for part in range(parts):
        prefix = tokens[:, : (2 * part + 1) * model.num_tokens // (2 * parts)]
        plain += timed(lambda prefix=prefix: plain_step(model, prefix, slots), device)[0] * model.num_tokens / parts
        cached.append(timed(lambda: model.generate(slots), device)[0])
    return median(cached), plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", type=positive, default=8, help="prefix lengths at which the plain method is timed")
    arguments, console = parser.parse_args(), make_console()
    keep_freed_memory()
    table = make_table(f"Generation through the slots on {describe()}", ["setting"], ["cached s", "plain s", "ratio"])
    for name in shown(list(SETTINGS), "generation", console):
        torch.manual_seed(0)
        model = SLATE(**COMMON | training_step.SETTINGS[name][0]).to(DEVICE)
        cached, plain = measure(model, SETTINGS[name], arguments.parts)
        table.add_row(f"{name}, {SETTINGS[name]} images", f"{cached:.2f}", f"{plain:.1f}", f"{plain / cached:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
