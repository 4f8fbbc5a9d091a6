"""Slot attention as a fixed point z = f(z): Locatello et al. 2020, algorithm 1; docs/method.md, "Slot attention"."""

from typing import Literal

import torch
from torch import Tensor, nn

from implicit_slate.allowed import Checked, NonNegativeFloat, PositiveFloat, PositiveInt
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Solution, Solver, parse_gradient
from implicit_slate.fixed_point.gradients import GradientName
from implicit_slate.fixed_point.solvers import SolverName
from implicit_slate.models.layers import linear, mlp


class SlotUpdate:
    """The refinement step f: slots (B, K, S) -> (B, K, S), with the keys and values of the inputs fixed.

    It is evaluated without autocast: with rounding to 8 bits, residuals and Jacobians would mean little.
    """

    _attention: Tensor

    def __init__(self, module: "SlotAttention", inputs: Tensor):
        self.module = module
        self.keys, self.values = module.keys_and_values(inputs)

    def __call__(self, slots: Tensor) -> Tensor:
        with torch.autocast(slots.device.type, enabled=False):
            slots, self._attention = self.module.step(slots, self.keys, self.values)
        return slots

    @property
    def attention(self) -> Tensor:
        """(B, N, K) attention of the last application: the softmax summed over heads, so it sums to 1 over slots."""
        return self._attention.sum(1)


class SlotAttention(Checked, nn.Module):
    """K slots of width S that compete for N inputs of width D.

    Args:
        input_size: D.
        num_slots: K.
        slot_size: S, a multiple of num_heads.
        mlp_size: hidden width of the MLP after the GRU.
        num_heads: heads of the attention; the softmax runs over heads and slots together.
        num_iterations: n, largest number of applications of f in the forward solve; without `tol`, the exact number.
        gradient: gradient mode of the refinement, from `implicit_slate.fixed_point`, or its spelling.
        solver: the forward solver: `picard`, `anderson` or `broyden`.
        tol: relative residual at which an image counts as solved.
        slot_init: initial slots: `gaussian` draws all from one learned normal distribution (Locatello et al. 2020),
            `queries` are K learned vectors (Jia et al. 2023). They are trained only if the gradient mode gives them a
            gradient.
        norm_eps: ε of the layer norms.

    Raises:
        UserError: sizes that do not fit together, or a gradient mode that does not work with the solver or its
            settings.
    """

    epsilon = 1e-8
    """Added to the attention before it is normalised over the inputs, because a slot's attention may sum to 0."""

    def __init__(
        self,
        input_size: PositiveInt,
        num_slots: PositiveInt,
        slot_size: PositiveInt,
        mlp_size: PositiveInt,
        num_heads: PositiveInt = 1,
        num_iterations: PositiveInt = 3,
        gradient: GradientName = "implicit",
        solver: SolverName = "picard",
        tol: NonNegativeFloat | None = None,
        slot_init: Literal["gaussian", "queries"] = "gaussian",
        norm_eps: PositiveFloat = 1e-5,
    ):
        super().__init__()
        if slot_size % num_heads:
            raise UserError(f"slot_size={slot_size} is not divisible by num_slot_heads={num_heads}")
        self.num_slots, self.slot_size, self.num_heads = num_slots, slot_size, num_heads
        self.solver, self.gradient = Solver(solver, num_iterations, tol), parse_gradient(gradient)
        self.gradient.check(self.solver)

        # Initial slots that get no gradient are frozen, because distributed training would wait for their gradients.
        trained, self.slot_init = self.gradient.reaches_start(self.solver), slot_init
        if slot_init == "gaussian":
            self.slot_mu = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, slot_size)), trained)
            self.slot_log_sigma = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, slot_size)), trained)
        else:
            self.queries = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, num_slots, slot_size)), trained)

        self.norm_inputs = nn.LayerNorm(input_size, norm_eps)
        self.norm_slots = nn.LayerNorm(slot_size, norm_eps)
        self.norm_mlp = nn.LayerNorm(slot_size, norm_eps)
        self.project_q = linear(slot_size, slot_size, bias=False)
        self.project_k = linear(input_size, slot_size, bias=False)
        self.project_v = linear(input_size, slot_size, bias=False)
        self.gru = nn.GRUCell(slot_size, slot_size)
        nn.init.xavier_uniform_(self.gru.weight_ih)
        nn.init.orthogonal_(self.gru.weight_hh)
        nn.init.zeros_(self.gru.bias_ih)
        nn.init.zeros_(self.gru.bias_hh)
        self.mlp = mlp(slot_size, mlp_size, slot_size)

    def sample_slots(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Initial slots (B, K, S): μ + exp(log σ)·ε, or the queries. `generator` must be on the CPU."""
        if self.slot_init == "queries":
            return self.queries.expand(batch_size, -1, -1)
        shape, like = (batch_size, self.num_slots, self.slot_size), self.slot_mu
        if generator is None:
            noise = torch.randn(shape, dtype=like.dtype, device=like.device)
        else:
            noise = torch.randn(shape, dtype=like.dtype, generator=generator).to(like.device)
        return like + self.slot_log_sigma.exp() * noise

    def keys_and_values(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> keys, which are scaled by (S/heads)^-½, and values, both (B, heads, N, S/heads)."""
        inputs, dtype = self.norm_inputs(inputs), self.norm_inputs.weight.dtype  # autocast rounds the products
        keys = self._split_heads(self.project_k(inputs).to(dtype)) * (self.slot_size // self.num_heads) ** -0.5
        return keys, self._split_heads(self.project_v(inputs).to(dtype))

    def step(self, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One refinement: slots (B, K, S) -> new slots, and the attention (B, heads, N, K)."""
        batch, num_slots, _ = slots.shape
        queries = self._split_heads(self.project_q(self.norm_slots(slots)))
        logits = (keys @ queries.mT).transpose(1, 2)  # (B, N, heads, K)
        attention = logits.flatten(2).softmax(-1).view_as(logits).transpose(1, 2)
        weights = attention + self.epsilon
        weights = weights / weights.sum(dim=2, keepdim=True)  # a weighted mean over the inputs
        updates = (weights.mT @ values).transpose(1, 2).reshape(batch * num_slots, self.slot_size)
        slots = self.gru(updates, slots.reshape(batch * num_slots, self.slot_size)).view_as(slots)
        return slots + self.mlp(self.norm_mlp(slots)), attention

    def forward(self, inputs: Tensor, slots_init: Tensor | None = None) -> tuple[Solution, SlotUpdate]:
        """Inputs (B, N, D) -> the solution, whose `z` is the slots (B, K, S), and the step f."""
        update = SlotUpdate(self, inputs)
        return self.solve(update, slots_init), update

    def solve(self, update: SlotUpdate, slots_init: Tensor | None = None) -> Solution:
        """Solve for the fixed point of `update`, differentiably by the gradient mode.

        Raises `NotFinite` if the first evaluation is not finite, but in evaluation mode only: training must not wait
        for a GPU, nor end in one process alone; it has `callbacks.divergence.FirstEvaluation`.
        """
        if slots_init is None:
            slots_init = self.sample_slots(len(update.keys))
        solution = self.gradient(update, slots_init, self.solver)
        return solution if self.training else solution.checked()

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, L, S) -> (B, heads, L, S/heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
