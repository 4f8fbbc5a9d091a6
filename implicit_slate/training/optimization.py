"""The optimiser's settings, and its tricks as functions of the step (docs/method.md; Singh, Deng, Ahn 2022)."""

import math
from dataclasses import dataclass
from typing import Literal

from implicit_slate.allowed import PositiveFloat, PositiveInt, check


@dataclass(frozen=True)
class Optimization:
    """Adam on two groups of parameters, the dVAE's and the rest (main). A trick is one option; null turns it off."""

    learning_rate: PositiveFloat = 1e-4
    """Of the main group."""
    dvae_learning_rate: PositiveFloat = 3e-4
    """Of the dVAE's group."""
    clip_norm: PositiveFloat | None = 1.0
    """Gradient clipping: the largest absolute value (infinity norm) that the gradient of all parameters may have."""
    warmup_steps: PositiveInt | None = 30_000
    """Steps of the main group's linear warmup."""
    decay: Literal["plateau", "half_life"] | None = "plateau"
    """`plateau` halves both groups' rates when validation stagnates; `half_life` decays the main group's steadily."""
    patience: PositiveInt = 4
    """For `plateau`: validations without a better loss before the rates are halved."""
    half_life: PositiveInt = 250_000
    """For `half_life`: steps in which the rate halves."""

    def __post_init__(self):
        check(type(self), vars(self))

    def rates(self, step: int, halving: float = 1.0) -> dict[str, float]:
        """The learning rates of the groups at `step` (from 0); `halving` is the factor of plateau halving."""
        main = self.learning_rate * (halving * self.main_factor(step))
        return {"main": main, "dvae": self.dvae_learning_rate * halving}

    def main_factor(self, step: int) -> float:
        """The factor of warmup and half-life on the main group's rate at `step` (from 0)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay = 0.5 ** (step / self.half_life) if self.decay == "half_life" else 1.0
        return warmup * decay


class Plateau:
    """Halves a factor each time `patience` validations in a row bring no better loss."""

    KEPT = ("best", "stagnant", "factor")
    """What a checkpoint keeps of it: not the patience, which is a setting."""

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
    """From `start` at step 0 to `final` at `num_steps` along half a cosine, and constant from there on."""
    progress = min(step / num_steps, 1.0)
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * progress))
