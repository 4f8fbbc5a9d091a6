"""How near the refinement comes to a fixed point, how many there are, and how good a mode's gradient is."""

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from callbacks.probe import Batch, Probe, solve
from implicit_slate.allowed import PositiveInt
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import count_basins, gradient_cosine, jacobian_regularizer, picard, spectral_radius
from implicit_slate.models import SlotModel

Measure = Literal["residual_at_depth", "spectral_radius", "jacobian_regularizer", "gradient_cosine", "basins"]


class FixedPointDiagnostics(Probe):
    """Measures of the refinement f at choice, each one a method below that says what it logs.

    Args:
        measures: what is measured.
        every_n_steps: steps between two measurements; `basins` and `gradient_cosine` cost many training steps.
        num_images: images of the probe batch.
        num_starts: initial slots for `basins`.

    Raises:
        UserError: an unknown measure, or, in training, `basins` of a model whose slots always start alike or
            `gradient_cosine` of one whose slot attention is not trained.
    """

    def __init__(
        self,
        measures: list[Measure],
        every_n_steps: PositiveInt = 1000,
        num_images: PositiveInt = 8,
        num_starts: PositiveInt = 8,
    ):
        if not measures:
            raise UserError("measures=[]: expected at least one")
        super().__init__(every_n_steps, num_images)
        self.measures, self.num_starts = measures, num_starts

    @property
    def state_key(self) -> str:
        return self._generate_state_key(measures=self.measures)  # a run may have several, at their own cadences

    def measure(self, model: SlotModel, batch: Batch, slots_init: Tensor, is_last: bool) -> dict[str, Tensor]:
        values = {}
        for name in self.measures:
            values |= getattr(self, name)(model, batch, slots_init)
        return values

    def residual_at_depth(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """`residual/depth_<d>` after d plain applications of f, for d = n, 2n, 4n, 8n with the n of training."""
        n = model.slot_attention.solver.max_iterations
        with torch.no_grad():
            trace = picard(model.refinement(batch["image"]), slots_init, max_iterations=8 * n).checked().trace
        return {f"residual/depth_{depth}": trace[depth - 1] for depth in (n, 2 * n, 4 * n, 8 * n)}

    def spectral_radius(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """`jacobian/spectral_radius` at z*, where the forward solve stops."""
        f, solution = solve(model, batch, slots_init)
        return {"jacobian/spectral_radius": spectral_radius(f, solution.z, tol=1e-3)}

    def jacobian_regularizer(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """`jacobian/regularizer`: ‖vᵀJ‖²/D at z*, with a Gaussian v that is always the same."""
        f, solution = solve(model, batch, slots_init)
        regularizer = jacobian_regularizer(f, solution.z, torch.Generator().manual_seed(0))
        return {"jacobian/regularizer": regularizer.detach()}

    def gradient_cosine(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """The mode's gradient of the loss with respect to slot attention's parameters beside that of `exact(gmres)`.

        `gradient/cosine`, and `gradient/norm_ratio`: the mode's norm over the exact one's. The exact one is a reference
        only where `gradient/adjoint_residual`, that of its backward solve, and the forward solve's `residual` are
        small. `gradient/adjoint_products` are the vector-Jacobian products of its backward solve.
        """
        slot_attention = model.slot_attention
        parameters = [p for p in slot_attention.parameters() if p.requires_grad]
        if not parameters:
            raise UserError("measures: 'gradient_cosine' needs a slot attention that is trained; this one is frozen")
        agreement = gradient_cosine(
            lambda slots: model.slot_loss(batch, slots),
            model.refinement(batch["image"]),
            slots_init,
            parameters,
            slot_attention.gradient,
            slot_attention.solver,
        )
        return {
            "gradient/cosine": agreement.cosine,
            "gradient/norm_ratio": agreement.norm_ratio,
            "gradient/adjoint_residual": agreement.adjoint.residual,
            "gradient/adjoint_products": torch.tensor(float(agreement.adjoint.products)),
        }

    def basins(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """`basins/distinct` fixed points that random initial slots lead to, as sets of slots in any order.

        `basins/converged`: how many of the `num_starts` reached one within 500 plain applications of f.
        """
        if model.slot_attention.slot_init == "queries":
            raise UserError("measures: 'basins' needs random initial slots, which slot_init 'queries' does not have")
        generator = torch.Generator().manual_seed(1)
        starts = [model.sample_slots(len(batch["image"]), generator).detach() for _ in range(self.num_starts)]
        with torch.no_grad():
            basins = count_basins(model.refinement(batch["image"]), starts, distance=distance_between_sets)
        return {"basins/distinct": basins.distinct, "basins/converged": basins.converged}


def distance_between_sets(slots: Tensor, other: Tensor) -> Tensor:
    """(B,) ‖slots - other‖ / ‖slots‖ of (B, K, S), with the slots of `other` in the order that fits best."""
    # By default cdist multiplies matrices where there are many slots, and then cannot tell small distances from zero.
    costs = torch.cdist(slots, other, compute_mode="donot_use_mm_for_euclid_dist").square().cpu().numpy()
    squared = slots.new_tensor([cost[linear_sum_assignment(cost)].sum() for cost in costs])
    return squared.sqrt() / slots.flatten(1).norm(dim=1).clamp_min(torch.finfo(slots.dtype).tiny)
