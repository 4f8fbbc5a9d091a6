"""The interface of all models with slots, so that callbacks and evaluation work with each of them."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implicit_slate.allowed import Checked
from implicit_slate.errors import UserError
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate


class Views(NamedTuple):
    """A model's output for images (B, C, H, W)."""

    reconstruction: Tensor
    """(B, C, H, W) in [0, 1]: the image reconstructed from the slots."""
    masks: Tensor
    """(B, K, H, W): each slot's share of a pixel; they sum to 1 over slots."""
    cross_entropy: Tensor | None = None
    """(B,) cross-entropy of the image's own tokens predicted from the slots, in nats, summed over tokens."""


class SlotModel(Checked, nn.Module):
    """Images -> slots by slot attention -> images. Shapes: image (B, C, H, W) in [0, 1], slots (B, K, S)."""

    slot_attention: SlotAttention
    image_size: int
    """Height and width of the images, in pixels."""
    mask_side: int
    """Side of the grid whose cells have one mask value each; a divisor of `image_size`."""
    makes_images: bool = True
    """Whether images can be made from the slots; if not, `views` raises a `UserError`."""
    predicts_tokens: bool = False
    """Whether images are made token by token, so that there are a cross-entropy and tokens to sample."""

    def sample_slots(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Initial slots (B, K, S); random ones are drawn from `generator`, on the CPU, if it is given."""
        return self.slot_attention.sample_slots(batch_size, generator)

    def check_images(self, image: Tensor) -> None:
        """Raise `UserError` unless `image` has floating-point images of the model's size."""
        size = (self.image_size, self.image_size)
        if image.ndim != 4 or image.shape[-2:] != size or not image.is_floating_point():
            raise UserError(
                f"expected images (B, C, {self.image_size}, {self.image_size}) of floating-point numbers in [0, 1], "
                f"found {tuple(image.shape)} of {image.dtype}"
            )

    def refinement(self, image: Tensor) -> SlotUpdate:
        """The refinement step f: slots -> slots, with the keys and values of `image` fixed."""
        raise NotImplementedError

    def slot_loss(self, batch: dict[str, Tensor], slots: Tensor) -> Tensor:
        """(): the part of the training loss that depends on the slots, as a function of them."""
        raise NotImplementedError

    def ceiling(self, image: Tensor) -> Tensor | None:
        """(B, C, H, W) in [0, 1]: the image reconstructed without the slots, which bounds the quality that slots can
        reach. None for a model that cannot do that."""
        return None

    def segment(self, image: Tensor, slots_init: Tensor | None = None) -> Tensor:
        """The masks of `views`; override this if they can be computed at less cost."""
        return self.views(image, slots_init).masks

    def views(self, image: Tensor, slots_init: Tensor | None = None) -> Views:
        """The reconstruction from the slots, and their masks, without gradients; the model must be in eval mode."""
        raise NotImplementedError


def enlarge(attention: Tensor, image_size: int) -> Tensor:
    """Attention (B, N, K) over the N cells of a grid, row by row -> masks (B, K, H, W), constant in each cell."""
    side = math.isqrt(attention.shape[1])
    masks = attention.mT.unflatten(-1, (side, side))
    return masks.repeat_interleave(image_size // side, -2).repeat_interleave(image_size // side, -1)


def interpolate(masks: Tensor, side: int) -> Tensor:
    """Masks (B, K, H, W) that are constant in each cell of a grid of side `side` -> masks interpolated bilinearly
    between the centres of the cells; they still sum to 1 over slots."""
    size = masks.shape[-1]
    return F.interpolate(masks[..., :: size // side, :: size // side], size=size, mode="bilinear")
