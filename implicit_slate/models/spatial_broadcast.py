"""Slot attention with a spatial broadcast decoder (Locatello et al. 2020, Watters et al. 2019); docs/method.md."""

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from implicit_slate.allowed import NonNegativeFloat, PositiveInt, restricted
from implicit_slate.fixed_point import Solution
from implicit_slate.fixed_point.gradients import GradientName
from implicit_slate.fixed_point.solvers import SolverName
from implicit_slate.models.dvae import squared_error
from implicit_slate.models.layers import mlp, xavier_uniform_
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate
from implicit_slate.models.slot_model import SlotModel, Views

GRID = 8
"""Side of the grid to which the decoder broadcasts a slot; each of its stride-2 layers doubles it."""
NORM_EPS = 1e-3
"""ε of all layer norms: the default of Keras, in which the source is written."""


if TYPE_CHECKING:
    BroadcastSize = int
else:
    SIZES = [GRID << doublings for doublings in range(1, 20)]
    BroadcastSize = restricted("BroadcastSize", int, "16, 32, 64, 128 or so on", SIZES.__contains__)


class Decoded(NamedTuple):
    """The decoder's output for slots (B, K, S)."""

    image: Tensor
    """(B, C, H, W): the components weighted by the masks; not clamped to [0, 1]."""
    components: Tensor
    """(B, K, C, H, W) the image of each slot alone."""
    masks: Tensor
    """(B, K, H, W) softmax over slots."""


class BroadcastLosses(NamedTuple):
    """The reconstruction error at two scales, both means over images, and slot attention's solution for it."""

    loss: Tensor
    """() mean squared error over all values, for images in [-1, 1], which the source minimises: 4 mse / (C H W)."""
    mse: Tensor
    """() squared error for images in [0, 1], summed over C, H, W."""
    solution: Solution
    update: SlotUpdate


class SoftPositionEmbedding(nn.Module):
    """Adds to (B, width, H, W) a linear map of each position's distances to the four borders, which are in [0, 1]."""

    def __init__(self, width: int, side: int):
        super().__init__()
        line = torch.linspace(0, 1, side)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1)
        self.register_buffer("grid", torch.cat([grid, 1 - grid], dim=-1), persistent=False)  # (H, W, 4)
        self.project = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.grid).permute(2, 0, 1)


class SpatialBroadcast(SlotModel):
    """A convolutional encoder at full resolution, slot attention over its pixels, an image and a mask from each slot.

    The defaults are those of the source for object discovery on CLEVR. Initial weights are Keras's defaults: Glorot
    uniform, zero biases, also in slot attention's MLP (in SLATE: Kaiming uniform before the ReLU).

    Args:
        image_size: height and width of the images in pixels: 16, 32, 64, 128, …; the decoder has m stride-2 layers for
            8 · 2^m pixels.
        image_channels: C.
        width: channels of all convolutions, and the width D of slot attention's inputs.
        num_slots: K.
        slot_size: S.
        slot_mlp_size: hidden width of slot attention's MLP.
        num_iterations: n, iterations of the forward solve.
        gradient, solver, tol, slot_init: see `SlotAttention`.

    Raises:
        UserError: an image size that the decoder cannot produce, or a gradient mode that does not work with the solver.
    """

    def __init__(
        self,
        image_size: BroadcastSize = 128,
        image_channels: PositiveInt = 3,
        width: PositiveInt = 64,
        num_slots: PositiveInt = 7,
        slot_size: PositiveInt = 64,
        slot_mlp_size: PositiveInt = 128,
        num_iterations: PositiveInt = 3,
        gradient: GradientName = "implicit",
        solver: SolverName = "picard",
        tol: NonNegativeFloat | None = None,
        slot_init: Literal["gaussian", "queries"] = "gaussian",
    ):
        super().__init__()
        doublings = (image_size // GRID).bit_length() - 1
        self.image_size = self.mask_side = image_size

        self.encoder = nn.Sequential()
        for channels in (image_channels, width, width, width):
            self.encoder.extend([nn.Conv2d(channels, width, 5, padding=2), nn.ReLU()])
        self.encoder_positions = SoftPositionEmbedding(width, image_size)
        self.slot_encoder = nn.Sequential(nn.LayerNorm(width, NORM_EPS), mlp(width, width, width))
        self.slot_attention = SlotAttention(
            width, num_slots, slot_size, slot_mlp_size, num_iterations=num_iterations, gradient=gradient,
            solver=solver, tol=tol, slot_init=slot_init, norm_eps=NORM_EPS,
        )  # fmt: skip
        self.decoder_positions = SoftPositionEmbedding(slot_size, GRID)
        self.decoder = nn.Sequential()
        for channels in (slot_size, *[width] * (doublings - 1)):
            doubling = nn.ConvTranspose2d(channels, width, 5, stride=2, padding=2, output_padding=1)
            self.decoder.extend([doubling, nn.ReLU()])
        self.decoder.extend([nn.Conv2d(width, width, 5, padding=2), nn.ReLU()])
        self.decoder.append(nn.Conv2d(width, image_channels + 1, 3, padding=1))  # a component and its mask logit
        xavier_uniform_(self)
        self.to(memory_format=torch.channels_last)

    def encode(self, image: Tensor, slots_init: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images -> slots (B, K, S) and attention (B, H·W, K), which sums to 1 over slots."""
        update = self.refinement(image)
        return self.slot_attention.solve(update, slots_init).z, update.attention

    def decode(self, slots: Tensor) -> Decoded:
        """Broadcast each slot to a grid of 8×8 and decode it separately into an image and a mask."""
        spread = slots.flatten(0, 1)[:, :, None, None].expand(-1, -1, GRID, GRID)
        spread = self.decoder_positions(spread).contiguous(memory_format=torch.channels_last)
        output = self.decoder(spread).unflatten(0, slots.shape[:2])  # (B, K, C + 1, H, W), images in [-1, 1]
        components, masks = (output[:, :, :-1] + 1) / 2, output[:, :, -1].softmax(1)
        return Decoded((components * masks[:, :, None]).sum(1), components, masks)

    def losses(self, image: Tensor, slots_init: Tensor | None = None) -> BroadcastLosses:
        """The error of the reconstruction of images (B, C, H, W)."""
        update = self.refinement(image)
        solution = self.slot_attention.solve(update, slots_init)
        loss = self.slot_loss({"image": image}, solution.z)
        return BroadcastLosses(loss, loss * image[0].numel() / 4, solution, update)

    def refinement(self, image: Tensor) -> SlotUpdate:
        self.check_images(image)
        features = self.encoder((2 * image - 1).contiguous(memory_format=torch.channels_last))
        return SlotUpdate(self.slot_attention, self.slot_encoder(self.encoder_positions(features).flatten(2).mT))

    def slot_loss(self, batch: dict[str, Tensor], slots: Tensor) -> Tensor:
        image = batch["image"]
        return 4 * squared_error(self.decode(slots).image, image) / image[0].numel()

    @torch.no_grad()
    def views(self, image: Tensor, slots_init: Tensor | None = None) -> Views:
        decoded = self.decode(self.encode(image, slots_init)[0])
        return Views(decoded.image.clamp(0, 1), decoded.masks)
