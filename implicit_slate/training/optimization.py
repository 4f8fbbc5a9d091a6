"""The optimiser's settings, and its tricks as functions of the step (Singh, Deng, Ahn 2022; docs/method.md)."""

import math
from dataclasses import dataclass
from typing import Literal

from implicit_slate.allowed import PositiveFloat, PositiveInt, check


@dataclass(frozen=True)
class Optimization:
    """Adam with two parameter groups, the dVAE's and the rest (main). Each trick is one option; null turns it off."""

    learning_rate: PositiveFloat = 1e-4
    """Learning rate of the main group."""
    dvae_learning_rate: PositiveFloat = 3e-4
    """Learning rate of the dVAE's group."""
    clip_norm: PositiveFloat | None = 1.0
    """Gradient clipping: largest infinity norm (absolute value) of the gradient of all parameters together."""
    warmup_steps: PositiveInt | None = 30_000
    """Number of steps of the main group's linear warmup."""
    decay: Literal["plateau", "half_life"] | None = "plateau"
    """`plateau` halves both groups' rates when the validation loss stagnates; `half_life` decays the main group's rate
    exponentially."""
    patience: PositiveInt = 4
    """For `plateau`: number of validations without a lower loss after which the rates are halved."""
    half_life: PositiveInt = 250_000
    """For `half_life`: number of steps in which the rate halves."""

    def __post_init__(self):
        check(type(self), vars(self))

    def rates(self, step: int, halving: float = 1.0) -> dict[str, float]:
        """The learning rates of the groups at `step` (from 0); `halving` is the factor from plateau halving."""
        main = self.learning_rate * (halving * self.main_factor(step))
        return {"main": main, "dvae": self.dvae_learning_rate * halving}

    def main_factor(self, step: int) -> float:
        """The main group's factor from warmup and half-life at `step` (from 0)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay = 0.5 ** (step / self.half_life) if self.decay == "half_life" else 1.0
        return warmup * decay


class Plateau:
    """A factor that halves each time `patience` validations in a row have no lower loss."""

    KEPT = ("best", "stagnant", "factor")
    """The state in a checkpoint. The patience is a setting and not among it."""

    def __init__(self, patience: int):
        self.patience, self.best, self.stagnant, self.factor = patience, math.inf, 0, 1.0

    def update(self, loss: float) -> None:
        if loss < self.best:
            self.best, self.stagnant = loss, 0
            return
        self.stagnant += 1
        if self.stagnant >= self.patience:
            self.factor, self.stagnant = self.factor / 2, 0

    def state_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.KEPT}

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update({name: state[name] for name in self.KEPT})


def cosine(step: int, start: float, final: float, num_steps: int) -> float:
    """Falls from `start` at step 0 to `final` at `num_steps` along half a cosine, and is constant afterwards."""
    progress = min(step / num_steps, 1.0)
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * progress))
