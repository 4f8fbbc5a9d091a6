"""How much of its vocabulary a discrete VAE uses."""

import torch
from torch import Tensor
from torchmetrics import Metric


class CodeUsage(Metric):
    """The number of codes in use, and the perplexity of their frequencies, exp(-Σ p log p); both are from 1 to V."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.add_state("counts", torch.zeros(vocab_size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, tokens: Tensor) -> None:
        """Tokens of any shape."""
        self.counts += torch.bincount(tokens.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        frequencies = self.counts / self.counts.sum()
        return {
            "codes_in_use": (self.counts > 0).sum().float(),
            "code_perplexity": torch.special.entr(frequencies).sum().exp(),
        }
