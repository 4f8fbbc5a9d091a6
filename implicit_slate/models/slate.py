"""SLATE: images -> tokens -> slots -> tokens -> images (Singh, Deng, Ahn 2022; docs/method.md, "SLATE")."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implicit_slate.allowed import MultipleOf4, NonNegativeFloat, PositiveInt, Share
from implicit_slate.fixed_point import Solution
from implicit_slate.fixed_point.gradients import GradientName
from implicit_slate.fixed_point.solvers import SolverName
from implicit_slate.models.dvae import DiscreteVAE, gumbel_softmax, sample_tokens, squared_error
from implicit_slate.models.generation import Decoding, check_sampling, choose
from implicit_slate.models.layers import Dropout, LinearCrossEntropy, linear, mlp
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate
from implicit_slate.models.slot_model import SlotModel, Views, enlarge
from implicit_slate.models.transformer import TransformerDecoder


class Prediction(NamedTuple):
    """The transformer's loss, and slot attention's solution for it."""

    cross_entropy: Tensor
    """() cross-entropy of the next-token prediction in nats, summed over the N tokens, mean over images."""
    solution: Solution
    update: SlotUpdate


class Losses(NamedTuple):
    """The two losses of SLATE, both means over images; they share no parameters. Training minimises their sum."""

    cross_entropy: Tensor
    """() cross-entropy of the transformer's next-token prediction in nats, summed over the N tokens."""
    mse: Tensor
    """() squared error of the dVAE's unclamped reconstruction, summed over C, H, W."""
    tokens: Tensor
    """(B, N) the transformer's targets."""
    prediction: Prediction


class SLATE(SlotModel):
    """A discrete VAE, slot attention over its tokens, and a transformer that predicts the tokens from the slots.

    The defaults are those of the public code for 3D Shapes.

    Args:
        image_size: height and width of the images in pixels, a multiple of 4.
        image_channels: C.
        vocab_size: V, number of dVAE codes.
        d_model: D, width of token embeddings and transformer, a multiple of num_heads.
        num_slots: K.
        slot_size: S, a multiple of num_slot_heads.
        slot_mlp_size: hidden width of slot attention's MLP.
        num_slot_heads: heads of slot attention.
        num_iterations: n, iterations of the forward solve.
        num_blocks: transformer blocks.
        num_heads: heads of the transformer's attentions.
        dropout: dropout rate of embeddings, attention weights, attention outputs and feed-forward outputs.
        gradient: gradient mode of the refinement, from `implicit_slate.fixed_point`: `unrolled`, `implicit`,
            `neumann(3)`, `exact(gmres)`, …
        solver: forward solver of the refinement: `picard`, `anderson` or `broyden`.
        tol: relative residual at which the solver may stop before num_iterations.
        slot_init: initial slots: `gaussian` or learned `queries`.

    Raises:
        UserError: sizes that do not fit together, or a gradient mode that does not work with the solver.
    """

    predicts_tokens = True

    def __init__(
        self,
        image_size: MultipleOf4 = 64,
        image_channels: PositiveInt = 3,
        vocab_size: PositiveInt = 1024,
        d_model: PositiveInt = 192,
        num_slots: PositiveInt = 3,
        slot_size: PositiveInt = 192,
        slot_mlp_size: PositiveInt = 192,
        num_slot_heads: PositiveInt = 1,
        num_iterations: PositiveInt = 3,
        num_blocks: PositiveInt = 4,
        num_heads: PositiveInt = 4,
        dropout: Share = 0.1,
        gradient: GradientName = "implicit",
        solver: SolverName = "picard",
        tol: NonNegativeFloat | None = None,
        slot_init: Literal["gaussian", "queries"] = "gaussian",
    ):
        super().__init__()
        self.image_size, self.vocab_size = image_size, vocab_size
        self.mask_side = image_size // 4  # masks are the attention over tokens
        self.num_tokens = self.mask_side**2

        self.dvae = DiscreteVAE(vocab_size, image_channels)
        self.dictionary = nn.Embedding(vocab_size + 1, d_model)  # index 0 begins the sequence, token t is index t + 1
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, self.num_tokens + 1, d_model)))
        self.dropout = Dropout(dropout)
        self.slot_encoder = nn.Sequential(nn.LayerNorm(d_model), mlp(d_model, d_model, d_model))
        self.slot_attention = SlotAttention(
            d_model, num_slots, slot_size, slot_mlp_size, num_slot_heads,
            num_iterations, gradient, solver, tol, slot_init,
        )  # fmt: skip
        self.slot_projection = linear(slot_size, d_model, bias=False)
        self.transformer = TransformerDecoder(d_model, num_blocks, num_heads, dropout)
        self.to_logits = linear(d_model, vocab_size, bias=False)

    # Shapes: image (B, C, H, W) in [0, 1]; tokens (B, N); slots (B, K, S).

    @torch.no_grad()
    def tokenize(self, image: Tensor) -> Tensor:
        """The most likely token of every 4×4 patch: (B, C, H, W) -> (B, N), row by row."""
        self.check_images(image)
        return self.dvae.logits(image).argmax(-1)

    def encode(self, tokens: Tensor, slots_init: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens -> slots (B, K, S) and attention (B, N, K), summed over heads, so that it sums to 1 over slots."""
        solution, update = self._refine(self._embed(tokens), slots_init)
        return solution.z, update.attention

    def decode(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """Teacher-forced logits (B, N, V): those at position i depend on the tokens before i."""
        return self.to_logits(self._read(self._embed(tokens), slots))

    @torch.no_grad()
    def generate(
        self,
        slots: Tensor,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Generate tokens (B, N) from the slots alone, one by one. The model must be in evaluation mode.

        Args:
            temperature: 0 takes the most likely token, 1 samples from the model's distribution, more is flatter.
            top_k: sample among the k most likely tokens only.
            top_p: sample among the smallest set of tokens whose probabilities sum to at least this (nucleus sampling).
            generator: on the slots' device.

        Raises:
            UserError: a setting outside its range, or top_k or top_p with temperature 0.
        """
        check_sampling(self.vocab_size, temperature, top_k, top_p)
        tokens: list[Tensor] = []
        # Without autocast, because one wrong token can change all that follow. Inference mode is a tenth faster.
        with torch.autocast(slots.device.type, enabled=False), torch.inference_mode():
            decoding = self.decoding(slots)
            index = torch.zeros(len(slots), dtype=torch.long, device=slots.device)
            for _ in range(self.num_tokens):
                tokens.append(choose(decoding.step(index), temperature, top_k, top_p, generator))
                index = tokens[-1] + 1
        return torch.stack(tokens, dim=1)  # outside of inference mode: an ordinary tensor, which can be trained on

    def decoding(self, slots: Tensor) -> Decoding:
        """The state for generating tokens from slots (B, K, S) one by one. The model must be in evaluation mode."""
        memory = self.slot_projection(slots)
        return Decoding(self.dictionary, self.positions, self.transformer, self.to_logits, memory)

    @torch.no_grad()
    def render(self, tokens: Tensor) -> Tensor:
        """The image (B, C, H, W) of tokens (B, N), clamped to [0, 1]."""
        return self.dvae.decode_tokens(tokens).clamp(0, 1)

    def losses(self, image: Tensor, tau: float | Tensor = 1.0, hard: bool = False) -> Losses:
        """Both losses on a batch of images.

        In training mode the dVAE decodes a Gumbel-softmax sample at temperature `tau` (`hard`: straight-through), and
        the transformer's target is a second, independent sample. In evaluation mode both are the argmax.
        """
        self.check_images(image)
        logits = self.dvae.logits(image)
        if self.training:
            tokens = sample_tokens(logits)
            reconstruction = self.dvae.decode(gumbel_softmax(logits, tau, hard))
        else:
            tokens = logits.argmax(-1)
            reconstruction = self.dvae.decode_tokens(tokens)
        prediction = self.predict(tokens)
        return Losses(prediction.cross_entropy, squared_error(reconstruction, image), tokens, prediction)

    def predict(self, tokens: Tensor, slots_init: Tensor | None = None) -> Prediction:
        """The loss of predicting tokens (B, N) from the slots inferred from them."""
        embedded = self._embed(tokens)
        solution, update = self._refine(embedded, slots_init)
        features = self._read(embedded, solution.z).flatten(0, 1)
        weight, targets = self.to_logits.weight, tokens.flatten()
        loss = LinearCrossEntropy.apply(features, weight, targets, torch.is_grad_enabled()) / len(tokens)
        return Prediction(loss, solution, update)

    def slot_update(self, tokens: Tensor) -> SlotUpdate:
        """The refinement step f: slots -> slots, with the keys and values of `tokens` fixed."""
        return SlotUpdate(self.slot_attention, self.slot_encoder(self._embed(tokens)[:, 1:]))

    def refinement(self, image: Tensor) -> SlotUpdate:
        return self.slot_update(self.tokenize(image))

    def slot_loss(self, batch: dict[str, Tensor], slots: Tensor) -> Tensor:
        tokens = self.tokenize(batch["image"])
        return F.cross_entropy(self.decode(tokens, slots).mT, tokens, reduction="sum") / len(tokens)

    def ceiling(self, image: Tensor) -> Tensor:
        """See `SlotModel`. It is the dVAE's reconstruction from its own tokens."""
        return self.render(self.tokenize(image))

    @torch.no_grad()
    def segment(self, image: Tensor, slots_init: Tensor | None = None) -> Tensor:
        """See `SlotModel`. The masks are the attention, with one value for each token's 4×4 pixels."""
        return enlarge(self.encode(self.tokenize(image), slots_init)[1], self.image_size)

    @torch.no_grad()
    def views(self, image: Tensor, slots_init: Tensor | None = None, **sampling) -> Views:
        """See `SlotModel`. `sampling` are arguments of `generate`."""
        tokens = self.tokenize(image)
        slots, attention = self.encode(tokens, slots_init)
        cross_entropy = F.cross_entropy(self.decode(tokens, slots).mT, tokens, reduction="none").sum(-1)
        image = self.render(self.generate(slots, **sampling))
        return Views(image, enlarge(attention, self.image_size), cross_entropy)

    # Slot attention and the transformer read the same embedding, with the same dropout mask: positions 1 to N and 0 to
    # N - 1.

    def _embed(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, N + 1, D); position 0 is the beginning of the sequence."""
        return self.dropout(self.dictionary(F.pad(tokens + 1, (1, 0))) + self.positions)

    def _refine(self, embedded: Tensor, slots_init: Tensor | None) -> tuple[Solution, SlotUpdate]:
        return self.slot_attention(self.slot_encoder(embedded[:, 1:]), slots_init)

    def _read(self, embedded: Tensor, slots: Tensor) -> Tensor:
        """The transformer's features (B, N, D)."""
        return self.transformer(embedded[:, :-1], self.slot_projection(slots))
