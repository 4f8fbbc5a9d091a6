"""What each curve of the report shows, and what its figure is called."""

from typing import NamedTuple

from implicit_slate.ablation.report.run import (
    ATTENTION_ENTROPY,
    COSINE,
    CROSS_ENTROPY,
    FG_ARI,
    GRADIENT_NORM,
    INFORMATION,
    LOSS,
    MSE,
    RESIDUAL,
    SLOTS_IN_USE,
    SPECTRAL_NORM,
)


class CurveFigure(NamedTuple):
    """A figure of one measurement over steps: the name of its files, what it measures, and how."""

    name: str
    label: str
    about: str


CURVE_FIGURES = {
    SPECTRAL_NORM: CurveFigure(
        "spectral_norm",
        "spectral norm of the Jacobian",
        "The largest singular value, mean over the probe images.",
    ),
    GRADIENT_NORM: CurveFigure(
        "grad_norm",
        "gradient norm of slot attention",
        "L2 norm over its parameters, before clipping; a point is the largest value since the point before.",
    ),
    CROSS_ENTROPY: CurveFigure(
        "cross_entropy",
        "validation cross-entropy",
        "Summed over the tokens, mean over the validation images; lower is better.",
    ),
    MSE: CurveFigure(
        "mse",
        "validation MSE",
        "Squared error summed over channels and pixels, mean over the validation images; lower is better.",
    ),
    LOSS: CurveFigure(
        "loss",
        "validation loss",
        "The one that the model is trained for, mean over the validation images; lower is better.",
    ),
    RESIDUAL: CurveFigure(
        "residual",
        "residual of the solve",
        "‖f(z) − z‖ / ‖f(z)‖ of the last forward step, mean over the probe images.",
    ),
    COSINE: CurveFigure(
        "gradient_cosine",
        "cosine to the exact gradient",
        "Of the gradients with respect to slot attention's parameters, on the probe images. The exact one comes from a "
        "backward solve by GMRES; it is one only as far as that and the forward solve converge.",
    ),
    ATTENTION_ENTROPY: CurveFigure(
        "attention_entropy",
        "entropy of the attention over slots",
        "Relative to its largest value, mean over inputs and probe images: at 1 every slot looks everywhere alike, at "
        "0 each input has one slot.",
    ),
    SLOTS_IN_USE: CurveFigure(
        "slots_in_use",
        "slots in use",
        "Slots that attend most to at least 1% of an image's inputs, mean over the probe images.",
    ),
    INFORMATION: CurveFigure(
        "slots_information",
        "information of inputs on their slot",
        "Relative to its largest value, mean over the probe images: at 0 the attention is the same at every input, at "
        "1 each input has one slot and all slots have as many.",
    ),
    FG_ARI: CurveFigure(
        "fg_ari",
        "FG-ARI of the slots' masks",
        "Adjusted Rand index over the pixels of objects, mean over the probe images; higher is better, chance is 0.",
    ),
}
