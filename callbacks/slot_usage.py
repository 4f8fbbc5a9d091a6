"""How the slots divide the image, to detect degenerate masks early in a run."""

import math

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks.probe import Batch, Probe, solve
from implicit_slate.allowed import PositiveInt
from implicit_slate.metrics import adjusted_rand_index, segments
from implicit_slate.models import SlotModel

IN_USE = 0.01
"""A slot is in use if it wins at least this fraction of an image's inputs."""
FEWEST_IN_USE = 1.5
"""If fewer slots are in use on average, one slot wins nearly everywhere in most images."""
LEAST_INFORMATION = 0.01
"""Below this, attention hardly depends on position. After a tenth of the steps, the grid `stress` has 0.25, and the
small broadcast decoder, whose slots separate late, 0.013, never falling below 0.012 later."""


class SlotUsage(Probe):
    """How slot attention divides the probe images: means over images, for the cost of one or two forward passes.

    - `slots/attention_entropy`: entropy of the attention over slots, mean over inputs, divided by log K. 1: at every
      input, attention is equal for all slots; 0: every input belongs to one slot.
    - `slots/in_use`: number of slots that win at least 1% of an image's inputs. The slot with the most attention at an
      input wins it.
    - `slots/information`: mutual information of input and slot, I(input; slot) / log K: the entropy of the mean
      attention minus the mean entropy. 0: attention is the same at every input, whether shared by all slots or on a
      single one; 1: every input belongs to one slot, and all slots have equally many.
    - `slots/fg_ari`: FG-ARI of the model's masks at the images' resolution, if the data has masks. Images with only
      background are left out.

    The attention is that of the last application of f in the forward solve. After the first tenth of the run's steps,
    one warning line is printed when the slots are first found degenerate: on average fewer than 1.5 slots in use, or
    information below 0.01.

    Args:
        every_n_steps: steps between two measurements.
        num_images: size of the probe batch.
    """

    kept = (*Probe.kept, "_warned")

    def __init__(self, every_n_steps: PositiveInt = 500, num_images: PositiveInt = 32):
        super().__init__(every_n_steps, num_images)
        self._warned = False

    @torch.no_grad()
    def measure(self, model: SlotModel, batch: Batch, slots_init: Tensor, is_last: bool) -> dict[str, Tensor]:
        f, _ = solve(model, batch, slots_init)
        values = {
            "slots/attention_entropy": attention_entropy(f.attention).mean(),
            "slots/in_use": slots_in_use(f.attention).float().mean(),
            "slots/information": attention_information(f.attention).mean(),
        }
        if "mask" in batch:
            found = segments(model.segment(batch["image"], slots_init))
            fg_ari = adjusted_rand_index(batch["mask"], found, foreground_only=True)
            if not fg_ari.isnan().all():
                values["slots/fg_ari"] = fg_ari.nanmean()
        return values

    def _measure(self, trainer: Trainer, module: LightningModule, is_last: bool = False) -> None:
        super()._measure(trainer, module, is_last)
        num_slots, step = module.model.slot_attention.num_slots, trainer.global_step
        if self._warned or not self.latest or num_slots == 1 or step < max(1, trainer.estimated_stepping_batches / 10):
            return
        entropy, in_use, information = (
            self.latest[f"slots/{name}"] for name in ("attention_entropy", "in_use", "information")
        )
        if in_use < FEWEST_IN_USE:
            found = "one slot wins nearly everywhere"
        elif information < LEAST_INFORMATION:
            found = "the slots look everywhere alike"
        else:
            return
        self._warned = True
        rank_zero_info(
            f"warning: step {step}: {found}: {in_use:.2f} of {num_slots} slots in use, "
            f"attention entropy {entropy:.3f}, information {information:.3f}"
        )


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy (B,) over slots of attention (B, N, K), mean over inputs, in units of log K: between 0 and 1."""
    return torch.special.entr(attention).sum(2).mean(1) / _log_slots(attention)


def attention_information(attention: Tensor) -> Tensor:
    """Mutual information (B,) of input and slot for attention (B, N, K), in units of log K: between 0 and 1."""
    return torch.special.entr(attention.mean(1)).sum(1) / _log_slots(attention) - attention_entropy(attention)


def slots_in_use(attention: Tensor) -> Tensor:
    """Number (B,) of slots that have the largest attention (B, N, K) at 1% of the inputs or more."""
    winners = attention.argmax(2, keepdim=True)
    return (torch.zeros_like(attention).scatter_(2, winners, 1.0).mean(1) >= IN_USE).sum(1)


def _log_slots(attention: Tensor) -> float:
    return math.log(max(attention.shape[2], 2))  # with a single slot all measures are 0
