"""Objects and their properties out of slots: set prediction as in Locatello et al. (2020)."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Solution
from implicit_slate.models.layers import mlp, start_as_keras
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate
from implicit_slate.models.slot_model import SlotModel, Views
from implicit_slate.models.spatial_broadcast import NORM_EPS, SoftPositionEmbedding

ATTRIBUTE_SIZES = (3, 2, 2, 8)
"""How many shapes, sizes, materials and colours CLEVR has."""
NUM_PROPERTIES = 3 + sum(ATTRIBUTE_SIZES) + 1
"""P, the length of an object's row: 3 coordinates in [0, 1], a one-hot vector of each attribute, and 1 for "real"."""
HEAD_SIZE = 64
"""Hidden width of the MLP that reads a slot."""


class PropertyLosses(NamedTuple):
    """What is predicted of a batch, how wrong it is, and how slot attention came to it."""

    loss: Tensor
    """See `set_loss`."""
    predictions: Tensor
    """(B, K, P) in [0, 1]; the last value of a row is the confidence that there is an object."""
    solution: Solution
    update: SlotUpdate


class PropertyModel(SlotModel):
    """Base of the models that predict one object a slot. A subclass says where the slots come from: `refinement`."""

    head: nn.Module
    """Slots (…, S) -> properties (…, P)."""

    def losses(self, image: Tensor, properties: Tensor, slots_init: Tensor | None = None) -> PropertyLosses:
        """Images and the properties of their objects, (B, M, P), M ≤ K. Raises `UserError` for more rows than slots."""
        update = self.refinement(image)
        solution = self._solve(update, slots_init)
        predictions = self.head(solution.z)
        return PropertyLosses(set_loss(predictions, properties), predictions, solution, update)

    def slot_loss(self, batch: dict[str, Tensor], slots: Tensor) -> Tensor:
        return set_loss(self.head(slots), batch["properties"])

    def views(self, image: Tensor, slots_init: Tensor | None = None) -> Views:
        raise UserError("a model that predicts properties makes no images; `implicit-slate validate` measures it")

    def _solve(self, update: SlotUpdate, slots_init: Tensor | None) -> Solution:
        if slots_init is None:
            slots_init = self.sample_slots(len(update.keys))
        return self.slot_attention.gradient(update, slots_init, self.slot_attention.solver)


class PropertyPredictor(PropertyModel):
    """Locatello et al.'s model for set prediction: convolutions, slot attention over a quarter of the side, an MLP.

    The defaults are those of the source. Weights start as Keras starts them: Glorot uniform, zero biases.

    Args:
        image_size: height and width of the images in pixels, a multiple of 4.
        image_channels: C.
        width: channels of all convolutions, and the width D of slot attention's inputs.
        num_slots: K, at least as many as there are objects in a scene.
        slot_size: S.
        slot_mlp_size: hidden width of slot attention's MLP.
        num_iterations: n, refinements in the forward solve.
        gradient, solver, tol, slot_init: see `SlotAttention`.

    Raises:
        UserError: an image size that is no multiple of 4, or a gradient mode and a solver that do not go together.
    """

    def __init__(
        self,
        image_size: int = 128,
        image_channels: int = 3,
        width: int = 64,
        num_slots: int = 10,
        slot_size: int = 64,
        slot_mlp_size: int = 128,
        num_iterations: int = 3,
        gradient: str = "implicit",
        solver: str = "picard",
        tol: float | None = None,
        slot_init: Literal["gaussian", "queries"] = "gaussian",
    ):
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise UserError(f"image_size={image_size} is not a multiple of 4 (two convolutions have a stride of 2)")
        self.image_size = image_size

        self.encoder = nn.Sequential()
        for channels, stride in ((image_channels, 1), (width, 2), (width, 2), (width, 1)):
            self.encoder.extend([nn.Conv2d(channels, width, 5, stride, padding=2), nn.ReLU()])
        self.encoder_positions = SoftPositionEmbedding(width, image_size // 4)
        self.slot_encoder = nn.Sequential(nn.LayerNorm(width, NORM_EPS), mlp(width, width, width))
        self.slot_attention = SlotAttention(
            width, num_slots, slot_size, slot_mlp_size, num_iterations=num_iterations, gradient=gradient,
            solver=solver, tol=tol, slot_init=slot_init, norm_eps=NORM_EPS,
        )  # fmt: skip
        self.head = nn.Sequential(mlp(slot_size, HEAD_SIZE, NUM_PROPERTIES), nn.Sigmoid())
        start_as_keras(self)
        self.to(memory_format=torch.channels_last)

    def refinement(self, image: Tensor) -> SlotUpdate:
        features = self.encoder((2 * image - 1).contiguous(memory_format=torch.channels_last))
        return SlotUpdate(self.slot_attention, self.slot_encoder(self.encoder_positions(features).flatten(2).mT))

    @torch.no_grad()
    def segment(self, image: Tensor, slots_init: Tensor | None = None) -> Tensor:
        """As of `SlotModel`; the attention, one value for 4×4 pixels."""
        update = self.refinement(image)
        self._solve(update, slots_init)
        side = self.image_size // 4
        masks = update.attention.mT.unflatten(-1, (side, side))
        return masks.repeat_interleave(4, -2).repeat_interleave(4, -1)


class PropertyReadout(PropertyModel):
    """The same MLP on the slots of a model that was trained for something else, and stays as it is.

    Args:
        source: gives the slots; it is frozen, and always in evaluation mode.
    """

    def __init__(self, source: SlotModel):
        super().__init__()
        self.source = source.requires_grad_(False)
        self.image_size = source.image_size
        self.head = nn.Sequential(mlp(self.slot_attention.slot_size, HEAD_SIZE, NUM_PROPERTIES), nn.Sigmoid())

    @property
    def slot_attention(self) -> SlotAttention:
        return self.source.slot_attention

    def refinement(self, image: Tensor) -> SlotUpdate:
        return self.source.refinement(image)

    def segment(self, image: Tensor, slots_init: Tensor | None = None) -> Tensor:
        return self.source.segment(image, slots_init)

    def losses(self, image: Tensor, properties: Tensor, slots_init: Tensor | None = None) -> PropertyLosses:
        losses = super().losses(image, properties, slots_init)
        return losses._replace(solution=losses.solution._replace(adjoint=None))  # nobody solves backward

    def train(self, mode: bool = True) -> "PropertyReadout":
        super().train(mode)
        self.source.eval()
        return self


def set_loss(predictions: Tensor, properties: Tensor) -> Tensor:
    """(): Huber loss between the rows of two sets, each row with its partner in the cheapest matching.

    A pair's loss is the mean over its P values, with δ = 1; it is summed over pairs, and the mean taken over images.

    Args:
        predictions: (B, K, P).
        properties: (B, M, P), M at most K; if it is less, rows of zeros are added, so that each slot has a partner.

    Raises:
        UserError: there are more rows than slots.
    """
    num_slots, num_rows = predictions.shape[1], properties.shape[1]
    if num_rows > num_slots:
        raise UserError(f"num_slots={num_slots}: scenes of up to {num_rows} objects need at least {num_rows} slots")
    properties = F.pad(properties, (0, 0, 0, num_slots - num_rows)).to(predictions)
    pairs = torch.broadcast_tensors(predictions.unsqueeze(2), properties.unsqueeze(1))
    costs = F.huber_loss(*pairs, reduction="none").mean(-1)  # (B, K, K)
    # A run that diverges has costs that are not finite: the loss will say so, not the matching.
    known = costs.detach().float().nan_to_num().cpu().numpy()
    partners = torch.stack([torch.from_numpy(linear_sum_assignment(cost)[1]) for cost in known]).to(costs.device)
    return costs.gather(2, partners.unsqueeze(2)).sum((1, 2)).mean()
