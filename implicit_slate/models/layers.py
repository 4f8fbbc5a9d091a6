"""Layers and initialisations that several parts of SLATE share."""

from torch import nn


def linear(in_features: int, out_features: int, bias: bool = True, gain: float = 1.0, before_relu: bool = False) -> nn.Linear:
    """A linear layer: Xavier-uniform times `gain`, or Kaiming-uniform where a ReLU follows; zero bias."""
    layer = nn.Linear(in_features, out_features, bias)
    if before_relu:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Two linear layers with a ReLU between."""
    return nn.Sequential(linear(in_features, hidden, before_relu=True), nn.ReLU(), linear(hidden, out_features))
