"""The spectral norm of the slot Jacobian, measured during training."""

import torch
from torch import Tensor

from callbacks.probe import Batch, Probe, solve
from implicit_slate.allowed import PositiveFloat, PositiveInt
from implicit_slate.fixed_point import largest_singular_value, spectral_radius
from implicit_slate.models import SlotModel


class SlotJacobian(Probe):
    """Spectral norm of the Jacobian of f at z*, where the forward solve stops, and the residual there.

    Logged as `jacobian/spectral_norm` and `residual`. The first measurement also logs `evaluations`, of f in a training
    step, and the last one `jacobian/spectral_radius`, which takes more products.

    Args:
        every_n_steps: steps between two measurements.
        num_images: size of the probe batch.
        tol: tolerance of the iteration, see `largest_singular_value`; the relative error of the norm is far smaller.
    """

    kept = (*Probe.kept, "_vector")

    def __init__(self, every_n_steps: PositiveInt = 200, num_images: PositiveInt = 8, tol: PositiveFloat = 1e-3):
        super().__init__(every_n_steps, num_images)
        self.tol = tol
        self._vector: Tensor | None = None

    def measure(self, model: SlotModel, batch: Batch, slots_init: Tensor, is_last: bool) -> dict[str, Tensor]:
        f, solution = solve(model, batch, slots_init)
        norm = largest_singular_value(f, solution.z, tol=self.tol, v0=self._warm_start(like=slots_init))
        self._vector = norm.vector.cpu()
        values = {"jacobian/spectral_norm": norm.value, "residual": solution.residual}
        if is_last:
            values["jacobian/spectral_radius"] = spectral_radius(f, solution.z, tol=self.tol)
        if not self.latest:
            with torch.no_grad():
                evaluations = model.slot_attention.gradient(f, slots_init, model.slot_attention.solver).evaluations
            values["evaluations"] = torch.tensor(float(evaluations))
        return values

    def _warm_start(self, like: Tensor) -> Tensor | None:
        """The last singular vector plus some noise, without which the iteration would not notice that another singular
        value has become the largest."""
        if self._vector is None or self._vector.shape != like.flatten(1).shape:
            return None
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self._vector.shape, generator=generator, dtype=self._vector.dtype)
        return (self._vector + 0.1 * noise / noise.norm(dim=1, keepdim=True)).to(like)
