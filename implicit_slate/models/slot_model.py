"""What every model with slots offers, so that callbacks and evaluation need not know which one they see."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate


class Views(NamedTuple):
    """What a model makes of images (B, C, H, W)."""

    images: dict[str, Tensor]
    """Reconstructions by their titles, each (B, C, H, W) in [0, 1]."""
    masks: Tensor
    """(B, K, H, W): each slot's share of a pixel; they sum to 1 over slots."""


class SlotModel(nn.Module):
    """Images -> slots by slot attention -> images. Shapes: image (B, C, H, W) in [0, 1], slots (B, K, S)."""

    slot_attention: SlotAttention

    def sample_slots(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Initial slots (B, K, S); random ones from a CPU generator if one is given."""
        return self.slot_attention.sample_slots(batch_size, generator)

    def refinement(self, image: Tensor) -> SlotUpdate:
        """f: slots -> slots, the refinement with the keys and values of `image` fixed."""
        raise NotImplementedError

    def slot_loss(self, image: Tensor, slots: Tensor) -> Tensor:
        """(): what of the training loss depends on the slots, as a function of them."""
        raise NotImplementedError

    def views(self, image: Tensor, slots_init: Tensor) -> Views:
        """Reconstructions and masks, in evaluation mode and without gradients."""
        raise NotImplementedError
