"""Layers and initialisations that several parts of SLATE share."""

import torch
from torch import Tensor, nn


def linear(
    in_features: int, out_features: int, bias: bool = True, gain: float = 1.0, before_relu: bool = False
) -> nn.Linear:
    """A linear layer: Xavier-uniform times `gain`, or Kaiming-uniform if a ReLU follows; zero bias."""
    layer = nn.Linear(in_features, out_features, bias)
    if before_relu:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def xavier_uniform_(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in all linear and convolutional layers of `module`: Keras's default."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Two linear layers with a ReLU between."""
    return nn.Sequential(linear(in_features, hidden, before_relu=True), nn.ReLU(), linear(hidden, out_features))


class Dropout(nn.Dropout):
    """`nn.Dropout` at a third of its cost on a CPU: torch draws a Bernoulli number for each value, this 16 random bits.

    The rate is thereby rounded to a multiple of 2⁻¹⁶. Values are scaled by the rounded rate, so means are kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0.0, 1.0) or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)  # of the 2¹⁶ values that 16 bits take
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept = bits >= dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))
