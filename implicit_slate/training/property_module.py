"""Training of set prediction: properties of objects from slots, its own or those of a model trained before."""

from typing import Any

from torch import Tensor

from implicit_slate.allowed import NonNegativeFloat
from implicit_slate.errors import UserError
from implicit_slate.metrics.set_prediction import PropertyAveragePrecision
from implicit_slate.models import PropertyPredictor, PropertyReadout, SlotModel
from implicit_slate.training.checkpoints import ENCODER, load_trained
from implicit_slate.training.optimization import Optimization
from implicit_slate.training.slot_module import SlotModule


class PropertyModule(SlotModule):
    """Prediction of objects' properties from slots, trained with the set loss.

    The default optimisation is that of the source (Locatello et al. 2020). Batches need `properties`. `train/loss` and
    `val/loss` are the set loss; `val/ap_inf`, `val/ap_1`, `val/ap_0.5`, `val/ap_0.25` and `val/ap_0.125` are average
    precisions, see `PropertyAveragePrecision`.

    Args:
        optimization: the optimiser's settings and tricks; all parameters are in its main group.
        jacobian_weight: weight of the Jacobian regulariser ‖vᵀJ‖²/D at the resulting slots, which is added to the loss.
        encoder_checkpoint: a checkpoint of `SLATEModule` or `SpatialBroadcastModule`, whose frozen model gives the
            slots; only the MLP that reads them is trained. All sizes, the gradient mode and the solver are then those
            of the checkpoint, and values given here are ignored.
    """

    def __init__(
        self,
        optimization: Optimization = Optimization(
            learning_rate=4e-4, clip_norm=None, warmup_steps=1_000, decay="half_life", half_life=50_000
        ),
        jacobian_weight: NonNegativeFloat = 0.0,
        encoder_checkpoint: str | None = None,
        **property_predictor,
    ):
        super().__init__(optimization, jacobian_weight)
        self.save_hyperparameters()
        self._encoder_settings: dict[str, Any] | None = None
        if encoder_checkpoint is None:
            self.model = PropertyPredictor(**property_predictor)
        elif jacobian_weight:
            raise UserError(f"jacobian_weight={jacobian_weight}: the slots of an encoder_checkpoint are not trained")
        else:
            encoder = load_trained(encoder_checkpoint)
            self.use_encoder(encoder.model)
            self._encoder_settings = encoder.settings
        self.split_metric = PropertyAveragePrecision()

    def use_encoder(self, encoder: SlotModel) -> None:
        """Predict the properties from the slots of `encoder`, which is not trained."""
        self.model = PropertyReadout(encoder)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._encoder_settings is not None:
            checkpoint[ENCODER] = self._encoder_settings

    def training_step(self, batch, batch_idx) -> Tensor:
        losses = self.model.losses(batch["image"], _properties(batch))
        return self.log_training_loss(losses.loss, losses.solution, losses.update)

    def evaluate(self, batch):
        losses = self.model.losses(batch["image"], _properties(batch))
        self.split_metric.update(losses.predictions, batch["properties"])
        return {"loss": losses.loss}


def _properties(batch: dict[str, Tensor]) -> Tensor:
    if "properties" not in batch:
        raise UserError(
            "data: batches without properties; `properties: true` of MirrorScenes, Sprites or CLEVRMirror adds them"
        )
    return batch["properties"]
