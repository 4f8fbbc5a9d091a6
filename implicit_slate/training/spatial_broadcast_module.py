"""Training of slot attention with a spatial broadcast decoder."""

from torch import Tensor

from implicit_slate.allowed import NonNegativeFloat
from implicit_slate.models import SpatialBroadcast
from implicit_slate.training.optimization import Optimization
from implicit_slate.training.slot_module import SlotModule


class SpatialBroadcastModule(SlotModule):
    """Slot attention with a spatial broadcast decoder, trained with its reconstruction error.

    The default optimisation is that of the source (Locatello et al. 2020; docs/method.md). `train/loss` and `val/loss`
    are the mean squared error over all values, for images in [-1, 1], which the source minimises; `train/mse` and
    `val/mse` are the squared error for images in [0, 1], summed over C, H, W, as for all models here.

    Args:
        optimization: the optimiser's settings and tricks; all parameters are in its main group.
        jacobian_weight: weight of the Jacobian regulariser ‖vᵀJ‖²/D at the resulting slots, which is added to the loss.
    """

    def __init__(
        self,
        optimization: Optimization = Optimization(
            learning_rate=4e-4, clip_norm=None, warmup_steps=10_000, decay="half_life", half_life=100_000
        ),
        jacobian_weight: NonNegativeFloat = 0.0,
        **spatial_broadcast,
    ):
        super().__init__(optimization, jacobian_weight)
        self.save_hyperparameters()
        self.model = SpatialBroadcast(**spatial_broadcast)

    def training_step(self, batch, batch_idx) -> Tensor:
        losses = self.model.losses(batch["image"])
        self.log_step({"train/mse": losses.mse})
        return self.log_training_loss(losses.loss, losses.solution, losses.update)

    def evaluate(self, batch):
        losses = self.model.losses(batch["image"])
        return {"mse": losses.mse, "loss": losses.loss}
