"""The base class of the LightningModules with slots."""

from lightning import Callback
from torch import Tensor

from callbacks.divergence import FirstEvaluation
from implicit_slate import host
from implicit_slate.allowed import NonNegativeFloat
from implicit_slate.fixed_point import Adjoint, Solution, jacobian_regularizer
from implicit_slate.models import SlotModel
from implicit_slate.models.slot_attention import SlotUpdate
from implicit_slate.training.base import TrainingModule
from implicit_slate.training.optimization import Optimization


class SlotModule(TrainingModule):
    """Base of modules with slots: a subclass sets `self.model` and implements `training_step` and `evaluate`."""

    model: SlotModel

    def __init__(self, optimization: Optimization, jacobian_weight: NonNegativeFloat):
        super().__init__(optimization)
        self.jacobian_weight = jacobian_weight
        self._adjoint: Adjoint | None = None
        self.first_evaluation_is_finite: Tensor | None = None
        """() whether the first evaluation of f was finite in the last training step."""

    def configure_callbacks(self) -> list[Callback]:
        return [FirstEvaluation()]

    def log_training_loss(self, loss: Tensor, solution: Solution, update: SlotUpdate) -> Tensor:
        """The loss to be minimised: `loss` plus, if `jacobian_weight` is not 0, the weighted Jacobian regulariser.

        The regulariser is computed at the detached resulting slots (Bai, Koltun, Kolter 2021).
        """
        self._adjoint, self.first_evaluation_is_finite = solution.adjoint, solution.finite
        if self.jacobian_weight:
            regularizer = jacobian_regularizer(update, solution.z.detach()).mean()
            self.log_step({"train/jacobian_regularizer": regularizer})
            loss = loss + self.jacobian_weight * regularizer
        # Lightning reads values for the progress bar in every step, even if there is no bar.
        self.log_step({"train/loss": loss}, prog_bar=host.is_free_to_read(loss))
        return loss

    def on_after_backward(self) -> None:
        if self._adjoint is not None:  # `exact` gradients: the backward solve has now run
            residual = self._adjoint.residual.mean()
            self.log_step({"adjoint/products": self._adjoint.products, "adjoint/residual": residual})
