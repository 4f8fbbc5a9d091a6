"""Set prediction: objects and their properties from slots (Locatello et al. 2020, section 4.2)."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from implicit_slate.allowed import MultipleOf4, NonNegativeFloat, PositiveInt
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Solution
from implicit_slate.fixed_point.gradients import GradientName
from implicit_slate.fixed_point.solvers import SolverName
from implicit_slate.models.layers import mlp, xavier_uniform_
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate
from implicit_slate.models.slot_model import SlotModel, Views, enlarge
from implicit_slate.models.spatial_broadcast import NORM_EPS, SoftPositionEmbedding

ATTRIBUTE_SIZES = (3, 2, 2, 8)
"""Numbers of shapes, sizes, materials and colours in CLEVR."""
NUM_PROPERTIES = 3 + sum(ATTRIBUTE_SIZES) + 1
"""P, values per object: 3 coordinates in [0, 1], a one-hot vector for each attribute, and 1 if the object is real."""
HEAD_SIZE = 64
"""Hidden width of the MLP that reads a slot."""


class PropertyLosses(NamedTuple):
    """The predictions for a batch, their loss, and slot attention's solution for it."""

    loss: Tensor
    """See `set_loss`."""
    predictions: Tensor
    """(B, K, P) in [0, 1]; the last value is the confidence that the slot is an object."""
    solution: Solution
    update: SlotUpdate


class PropertyModel(SlotModel):
    """Base class of models that predict one object from each slot; a subclass implements `refinement`."""

    makes_images = False

    head: nn.Module
    """Slots (…, S) -> properties (…, P)."""

    def losses(self, image: Tensor, properties: Tensor, slots_init: Tensor | None = None) -> PropertyLosses:
        """The loss and predictions for images and their objects' properties (B, M, P). Raises `UserError` if M > K."""
        update = self.refinement(image)
        solution = self.slot_attention.solve(update, slots_init)
        predictions = self.head(solution.z)
        return PropertyLosses(set_loss(predictions, properties), predictions, solution, update)

    def slot_loss(self, batch: dict[str, Tensor], slots: Tensor) -> Tensor:
        return set_loss(self.head(slots), batch["properties"])

    def views(self, image: Tensor, slots_init: Tensor | None = None) -> Views:
        raise UserError("a model that predicts properties makes no images; `implicit-slate validate` measures it")


class PropertyPredictor(PropertyModel):
    """Locatello et al.'s model for set prediction: convolutions, slot attention over a grid of (H/4)² cells, an MLP.

    The defaults are those of the source. Initial weights are Keras's defaults: Glorot uniform, zero biases.

    Args:
        image_size: height and width of the images in pixels, a multiple of 4.
        image_channels: C.
        width: channels of all convolutions, and the width D of slot attention's inputs.
        num_slots: K, at least the largest number of objects in a scene.
        slot_size: S.
        slot_mlp_size: hidden width of slot attention's MLP.
        num_iterations: n, iterations of the forward solve.
        gradient, solver, tol, slot_init: see `SlotAttention`.

    Raises:
        UserError: an image size that is not a multiple of 4, or a gradient mode that does not work with the solver.
    """

    def __init__(
        self,
        image_size: MultipleOf4 = 128,
        image_channels: PositiveInt = 3,
        width: PositiveInt = 64,
        num_slots: PositiveInt = 10,
        slot_size: PositiveInt = 64,
        slot_mlp_size: PositiveInt = 128,
        num_iterations: PositiveInt = 3,
        gradient: GradientName = "implicit",
        solver: SolverName = "picard",
        tol: NonNegativeFloat | None = None,
        slot_init: Literal["gaussian", "queries"] = "gaussian",
    ):
        super().__init__()
        self.image_size, self.mask_side = image_size, image_size // 4

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
        xavier_uniform_(self)
        self.to(memory_format=torch.channels_last)

    def refinement(self, image: Tensor) -> SlotUpdate:
        self.check_images(image)
        features = self.encoder((2 * image - 1).contiguous(memory_format=torch.channels_last))
        return SlotUpdate(self.slot_attention, self.slot_encoder(self.encoder_positions(features).flatten(2).mT))

    @torch.no_grad()
    def segment(self, image: Tensor, slots_init: Tensor | None = None) -> Tensor:
        """See `SlotModel`. The masks are the attention, with one value for each 4×4 pixels."""
        update = self.refinement(image)
        self.slot_attention.solve(update, slots_init)
        return enlarge(update.attention, self.image_size)


class PropertyReadout(PropertyModel):
    """The MLP of `PropertyPredictor` on the slots of a frozen model that was trained for something else.

    Args:
        source: the model that gives the slots; it is frozen and kept in evaluation mode.
    """

    def __init__(self, source: SlotModel):
        super().__init__()
        self.source = source.requires_grad_(False)
        self.image_size, self.mask_side = source.image_size, source.mask_side
        self.head = nn.Sequential(mlp(self.slot_attention.slot_size, HEAD_SIZE, NUM_PROPERTIES), nn.Sigmoid())

    @property
    def slot_attention(self) -> SlotAttention:  # type: ignore[override]
        return self.source.slot_attention

    def refinement(self, image: Tensor) -> SlotUpdate:
        return self.source.refinement(image)

    def segment(self, image: Tensor, slots_init: Tensor | None = None) -> Tensor:
        return self.source.segment(image, slots_init)

    def losses(self, image: Tensor, properties: Tensor, slots_init: Tensor | None = None) -> PropertyLosses:
        losses = super().losses(image, properties, slots_init)
        return losses._replace(solution=losses.solution.changed(adjoint=None))  # there is no backward solve

    def train(self, mode: bool = True) -> "PropertyReadout":
        super().train(mode)
        self.source.eval()
        return self


def set_loss(predictions: Tensor, properties: Tensor) -> Tensor:
    """(): Huber loss between predicted and true objects, paired one to one such that the loss is smallest.

    The loss of a pair is the mean over its P values, with δ = 1. Losses are summed over pairs and averaged over images.

    Args:
        predictions: (B, K, P).
        properties: (B, M, P), M at most K; if it is less, objects of zeros are added, so that each slot has a partner.

    Raises:
        UserError: there are more objects than slots.
    """
    num_slots, num_objects = predictions.shape[1], properties.shape[1]
    if num_objects > num_slots:
        raise UserError(
            f"num_slots={num_slots}: scenes of up to {num_objects} objects need at least {num_objects} slots"
        )
    properties = F.pad(properties, (0, 0, 0, num_slots - num_objects)).to(predictions)
    predictions, properties = torch.broadcast_tensors(predictions.unsqueeze(2), properties.unsqueeze(1))
    costs = F.huber_loss(predictions, properties, reduction="none").mean(-1)  # (B, K, K)
    # In a diverging run costs are not finite. The loss shows that; the matching must not raise an error first.
    known = costs.detach().float().nan_to_num().cpu().numpy()
    partners = torch.stack([torch.from_numpy(linear_sum_assignment(cost)[1]) for cost in known]).to(costs.device)
    return costs.gather(2, partners.unsqueeze(2)).sum((1, 2)).mean()
