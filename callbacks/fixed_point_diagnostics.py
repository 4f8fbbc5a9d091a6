"""How close the refinement gets to a fixed point, how many fixed points it has, and how good a mode's gradient is."""

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

NUM_STARTS = 8
"""How many random initial slots of an image `basins` starts from; the descriptions of measures name this number."""


class FixedPointDiagnostics(Probe):
    """Selected measures of the refinement f. Each is a method below, whose docstring says what it logs.

    Args:
        measures: names of the measures.
        every_n_steps: steps between two measurements; `basins` and `gradient_cosine` take as long as many training
            steps.
        num_images: size of the probe batch.

    Raises:
        UserError: an unknown measure; in training, `basins` for a model whose initial slots are not random, or
            `gradient_cosine` for one whose slot attention is frozen.
    """

    def __init__(self, measures: list[Measure], every_n_steps: PositiveInt = 1000, num_images: PositiveInt = 8):
        if not measures:
            raise UserError("measures=[]: expected at least one")
        super().__init__(every_n_steps, num_images)
        self.measures = measures

    @property
    def state_key(self) -> str:
        return self._generate_state_key(measures=self.measures)  # a run may have several, each with its own interval

    def measure(self, model: SlotModel, batch: Batch, slots_init: Tensor, is_last: bool) -> dict[str, Tensor]:
        values = {}
        for name in self.measures:
            values |= getattr(self, name)(model, batch, slots_init)
        return values

    def residual_at_depth(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """`residual/depth_<d>`: the residual after d Picard steps, for d = n, 2n, 4n, 8n with the n of training."""
        n = model.slot_attention.solver.max_iterations
        with torch.no_grad():
            trace = picard(model.refinement(batch["image"]), slots_init, max_iterations=8 * n).checked().trace
        return {f"residual/depth_{depth}": trace[depth - 1] for depth in (n, 2 * n, 4 * n, 8 * n)}

    def spectral_radius(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """`jacobian/spectral_radius` at z*, where the forward solve stops."""
        f, solution = solve(model, batch, slots_init)
        return {"jacobian/spectral_radius": spectral_radius(f, solution.z, tol=1e-3)}

    def jacobian_regularizer(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """`jacobian/regularizer`: ‖vᵀJ‖²/D at z*, with a fixed Gaussian v."""
        f, solution = solve(model, batch, slots_init)
        regularizer = jacobian_regularizer(f, solution.z, torch.Generator().manual_seed(0))
        return {"jacobian/regularizer": regularizer.detach()}

    def gradient_cosine(self, model: SlotModel, batch: Batch, slots_init: Tensor) -> dict[str, Tensor]:
        """Compares the mode's gradient of the loss, by slot attention's parameters, with the exact one, which is the
        reference of `fixed_point.gradient_cosine`.

        - `gradient/cosine`: their cosine similarity.
        - `gradient/norm_ratio`: the mode's norm divided by the exact one's.
        - `gradient/adjoint_residual`: residual of the exact gradient's backward solve. That gradient is a reference
          only if this and the forward solve's `residual` are small.
        - `gradient/adjoint_products`: number of vector-Jacobian products in that backward solve.
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
        """Counts the fixed points reached from random initial slots.

        - `basins/distinct`: number of distinct fixed points, compared as sets of slots in any order.
        - `basins/converged`: how many of the `NUM_STARTS` starts converge within 500 Picard steps.
        """
        if model.slot_attention.slot_init == "queries":
            raise UserError("measures: 'basins' needs random initial slots, which slot_init 'queries' does not have")
        generator = torch.Generator().manual_seed(1)
        starts = [model.sample_slots(len(batch["image"]), generator).detach() for _ in range(NUM_STARTS)]
        with torch.no_grad():
            basins = count_basins(model.refinement(batch["image"]), starts, distance=distance_between_sets)
        return {"basins/distinct": basins.distinct, "basins/converged": basins.converged}


def distance_between_sets(slots: Tensor, other: Tensor) -> Tensor:
    """‖slots - other‖ / ‖slots‖, (B,), for slots (B, K, S), with those of `other` in the best-matching order."""
    # For many slots, cdist by default uses a matrix product, which cannot distinguish small distances from zero.
    costs = torch.cdist(slots, other, compute_mode="donot_use_mm_for_euclid_dist").square().cpu().numpy()
    squared = slots.new_tensor([cost[linear_sum_assignment(cost)].sum() for cost in costs])
    return squared.sqrt() / slots.flatten(1).norm(dim=1).clamp_min(torch.finfo(slots.dtype).tiny)
