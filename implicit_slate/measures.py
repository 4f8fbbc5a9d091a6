"""All quantities that are logged during training or evaluated afterwards: their tags, names, and how to read them.

To add a logged quantity, log it where it is computed and add an entry to `LOGGED`. Result files, HPARAMS, tables,
figures and the table in the docs are made from it. This module imports only the standard library.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Summary = Literal["last", "largest"]

_SUFFIXES: dict[Summary, str] = {"last": "_final", "largest": "_max"}


@dataclass(frozen=True)
class Measure:
    """One quantity."""

    tag: str
    """Its TensorBoard tag, or its key in the JSON of an evaluation."""
    name: str
    """Its name in text, such as `validation cross-entropy`."""
    about: str
    """How it is measured and how to read it; shown under its figure and in the docs."""
    source: str = "the modules"
    """The callback or module that logs it."""
    unit: str = ""
    summaries: tuple[Summary, ...] = ()
    """The values that summarise a run; each is a column of `results.csv`."""
    suffixed: bool = True
    """Whether such a column's name says which value it is (`residual_final`); otherwise it is the tag alone."""
    better: Literal["lower", "higher"] | None = None
    log_scale: bool = False
    """Whether it varies over orders of magnitude."""
    figure: bool = False
    """Whether the report draws it over training."""
    headline: bool = False
    """Whether it distinguishes gradient modes, so that tables with little space show it first."""

    @property
    def columns(self) -> dict[str, Summary]:
        """The columns of `results.csv` that summarise it for a run."""
        return {self.tag + _SUFFIXES[how] if self.suffixed else self.tag: how for how in self.summaries}

    @property
    def file_name(self) -> str:
        """The names of its figure's files, without suffix: `jacobian_spectral_norm`."""
        return self.tag.replace("/", "_")


_LAST: tuple[Summary, ...] = ("last",)
_AP = "Average precision of predicted objects; a prediction is correct only "

LOGGED: dict[str, Measure] = {
    measure.tag: measure
    for measure in (
        Measure(
            "val/cross_entropy", "validation cross-entropy",
            "Cross-entropy of the argmax tokens without noise, summed over tokens, mean over the validation images.",
            unit="nats", summaries=_LAST, suffixed=False, better="lower", figure=True, headline=True,
        ),
        Measure(
            "val/mse", "validation MSE",
            "Squared error summed over channels and pixels, mean over the validation images: of the dVAE's own "
            "reconstruction, or of the spatial broadcast decoder's.",
            summaries=_LAST, suffixed=False, better="lower", figure=True,
        ),
        Measure(
            "val/loss", "validation loss",
            "Sum of the model's losses without the Jacobian regulariser, mean over the validation images; it includes "
            "the error of a frozen dVAE, a constant. Plateau halving watches it.",
            summaries=_LAST, suffixed=False, better="lower", figure=True,
        ),
        Measure(
            "jacobian/spectral_norm", "spectral norm",
            "The largest singular value of the slot Jacobian where the forward solve stops, mean over the probe "
            "images.",
            source="SlotJacobian", summaries=("last", "largest"), log_scale=True, figure=True, headline=True,
        ),
        Measure(
            "jacobian/spectral_radius", "spectral radius",
            "The largest absolute eigenvalue of the slot Jacobian, mean over the probe images; SlotJacobian measures "
            "it only at the end.",
            source="SlotJacobian, FixedPointDiagnostics", summaries=_LAST,
        ),
        Measure(
            "grad_norm", "gradient norm",
            "L2 norm over slot attention's parameters, before clipping; each point is the largest value since the "
            "previous point.",
            source="GradientNorm", summaries=("largest",), log_scale=True, figure=True, headline=True,
        ),
        Measure(
            "residual", "residual",
            "‖f(z) − z‖ / ‖f(z)‖ of the last forward step, mean over the probe images.",
            source="SlotJacobian", summaries=_LAST, log_scale=True, figure=True, headline=True,
        ),
        Measure(
            "evaluations", "evaluations per step",
            "How often a training step evaluates f, including recorded evaluations; logged once.",
            source="SlotJacobian", summaries=_LAST, suffixed=False,
        ),
        Measure(
            "gradient/cosine", "cosine to the exact gradient",
            "Cosine between the mode's gradient and the exact one, with respect to slot attention's parameters, on the "
            "probe images. The exact gradient comes from a backward solve by GMRES; it is exact only as far as that "
            "solve and the forward solve converge.",
            source="FixedPointDiagnostics", summaries=_LAST, suffixed=False, figure=True,
        ),
        Measure(
            "gradient/norm_ratio", "norm relative to the exact gradient",
            "The norm of the mode's gradient divided by that of the exact one.",
            source="FixedPointDiagnostics", summaries=_LAST, suffixed=False,
        ),
        Measure(
            "gradient/adjoint_residual", "residual of the reference's backward solve",
            "Residual ‖uJ + g − u‖ / ‖g‖ for the exact gradient with which the mode's is compared.",
            source="FixedPointDiagnostics", summaries=_LAST, suffixed=False, log_scale=True,
        ),
        Measure(
            "gradient/adjoint_products", "products of the reference's backward solve",
            "Number of vector-Jacobian products for the exact gradient.",
            source="FixedPointDiagnostics", summaries=_LAST, suffixed=False,
        ),
        Measure(
            "adjoint/products", "products of the backward solve",
            "Number of vector-Jacobian products of an `exact` mode in the logged step.",
            summaries=_LAST, suffixed=False,
        ),
        Measure(
            "adjoint/residual", "residual of the backward solve",
            "Residual ‖uJ + g − u‖ / ‖g‖ of an `exact` mode in the logged step.",
            summaries=_LAST, suffixed=False, log_scale=True,
        ),
        Measure(
            "slots/attention_entropy", "attention entropy",
            "Entropy of the attention over slots, relative to its maximum, mean over inputs and probe images: at 1 all "
            "slots attend to each input equally, at 0 each input has one slot.",
            source="SlotUsage", summaries=_LAST, figure=True,
        ),
        Measure(
            "slots/in_use", "slots in use",
            "Number of slots that attend most to at least 1% of an image's inputs, mean over the probe images.",
            source="SlotUsage", summaries=_LAST, figure=True,
        ),
        Measure(
            "slots/information", "information on slots",
            "Information that an input gives about its slot, relative to its maximum, mean over the probe images: at 0 "
            "the attention is the same at every input, at 1 each input has one slot and all slots have equally many.",
            source="SlotUsage", summaries=_LAST, figure=True,
        ),
        Measure(
            "slots/fg_ari", "FG-ARI",
            "Adjusted Rand index of the slots' masks over object pixels, mean over the probe images; chance level is "
            "0, but random weights reach 0.2 on small scenes.",
            source="SlotUsage", summaries=_LAST, better="higher", figure=True,
        ),
        *(
            Measure(f"val/ap_{key}", f"AP {name}", about, summaries=_LAST, suffixed=False, better="higher")
            for key, name, about in (
                ("inf", "at any distance", "Average precision of predicted objects, at any predicted position."),
                ("1", "within distance 1", _AP + "within a distance of 1 of the object."),
                ("0.5", "within 0.5", _AP + "within a distance of 0.5."),
                ("0.25", "within 0.25", _AP + "within a distance of 0.25."),
                ("0.125", "within 0.125", _AP + "within a distance of 0.125."),
            )
        ),
        Measure("train/loss", "training loss", "In the logged step."),
        Measure("train/cross_entropy", "training cross-entropy", "In the logged step, with noise.", unit="nats"),
        Measure("train/mse", "training MSE", "In the logged step, with noise."),
        Measure("train/learning_rate", "learning rate", "For the main group, in the logged step.", log_scale=True),
        Measure("train/tau", "temperature", "For the Gumbel-softmax, in the logged step."),
        Measure(
            "train/jacobian_regularizer", "Jacobian regulariser",
            "E‖vᵀJ‖² / D at the final slots, if `model.jacobian_weight` is above 0.",
        ),
        Measure(
            "val/codes_in_use", "codes in use", "Among the dVAE's argmax tokens on the validation set.", better="higher"
        ),
        Measure(
            "val/code_perplexity", "perplexity of the codes", "Of the dVAE's argmax tokens on the validation set."
        ),
        Measure(
            "residual/depth_<d>", "residual at depth d", "Residual after d = n, 2n, 4n, 8n plain applications.",
            source="FixedPointDiagnostics", log_scale=True,
        ),
        Measure(
            "jacobian/regularizer", "Jacobian regulariser at z*", "‖vᵀJ‖² / D, always with the same v.",
            source="FixedPointDiagnostics",
        ),
        Measure(
            "basins/distinct", "distinct fixed points",
            "Number of fixed points that 8 random starts reach, as sets of slots in any order.",
            source="FixedPointDiagnostics",
        ),
        Measure(
            "basins/converged", "converged starts",
            "Number of those starts that reach a fixed point in 500 applications.",
            source="FixedPointDiagnostics",
        ),
    )
}  # fmt: skip
"""Logged measures by tag, in the order of the columns of `results.csv`. For values that a probe measures for each
image, the mean is logged under the tag, and the maximum under `<tag>_image_max`."""

EVALUATED: dict[str, Measure] = {
    measure.tag: measure
    for measure in (
        Measure("mse", "MSE", "Squared error of the reconstruction through the slots, summed over values.",
                "evaluate", better="lower"),
        Measure("mse_per_value", "MSE per value",
                "Squared error of the reconstruction through the slots, mean over values.", "evaluate", better="lower"),
        Measure("psnr", "PSNR", "From the mean squared error per value, mean over images.",
                "evaluate", unit="dB", better="higher"),
        Measure("ssim", "SSIM", "Structural similarity (Wang et al. 2004).",
                "evaluate", better="higher"),
        Measure("fid", "FID", "Fréchet distance of Inception's features; depends on the number of images.",
                "evaluate", better="lower"),
        Measure("kid", "KID", "Kernel distance of Inception's features, which suits few images better.",
                "evaluate", better="lower"),
        Measure("cross_entropy", "cross-entropy", "Cross-entropy of the image's own tokens, predicted from the slots.",
                "evaluate", unit="nats", better="lower"),
        Measure("fg_ari", "FG-ARI", "Adjusted Rand index of the slots' masks over object pixels.",
                "evaluate", better="higher"),
        Measure("ari", "ARI", "Adjusted Rand index of the slots' masks over all pixels.", "evaluate", better="higher"),
        Measure("mbo_object", "mBO per object",
                "Best overlap (IoU) of any mask with each object, mean over all objects.", "evaluate", better="higher"),
        Measure("mbo_image", "mBO per image", "Best overlap with each object, mean over an image's objects, then over "
                "images.", "evaluate", better="higher"),
    )
}  # fmt: skip
"""Evaluated measures by their key in the JSON of an evaluation."""

REFERENCES = {
    "ceiling": "dVAE alone (ceiling)",
    "bound": "masks of this resolution, at best",
    "random_weights": "random weights",
}
"""Reference values for the numbers of an evaluation: their key in its JSON, and their name in tables."""

LOSSES = ("val/cross_entropy", "val/mse", "val/loss")
"""The losses that slots can be trained for. A run's loss is the first of these that it has: models with tokens also log
the MSE of their dVAE, and all models log the sum of their losses."""

COLUMNS: dict[str, tuple[Measure, Summary]] = {
    column: (measure, how) for measure in LOGGED.values() for column, how in measure.columns.items()
}
"""The columns of a cell in `result.json` and `results.csv`: which measure each one summarises, and how."""


def column_name(column: str) -> str:
    """A column's name in text: `validation cross-entropy`, `largest spectral norm`."""
    measure, how = COLUMNS[column]
    return f"{how} {measure.name}" if measure.suffixed else measure.name


def headline_columns() -> list[str]:
    """All columns, those of `headline` measures first."""
    return sorted(COLUMNS, key=lambda column: not COLUMNS[column][0].headline)


def summarise(curves: Mapping[str, Mapping[int, float]]) -> dict[str, float | None]:
    """The values of `COLUMNS` for a run, from its curves (a mapping from tag to step to value, ordered by step).

    Values that are missing or not finite are None.
    """
    return {
        column: finite(_last_or_largest(list(curves.get(measure.tag, {}).values()), how))
        for column, (measure, how) in COLUMNS.items()
    }


def final_loss(measures: Mapping[str, Any]) -> float | None:
    """A run's loss (see `LOSSES`) among its measures; None if it has none."""
    return next((measures[tag] for tag in LOSSES if measures.get(tag) is not None), None)


def _last_or_largest(values: list[float], how: Summary) -> float:
    if not values or (how == "largest" and any(map(math.isnan, values))):  # Python's max may ignore a NaN
        return math.nan
    return values[-1] if how == "last" else max(values)


def finite(value: float) -> float | None:
    """The value; None if it is not finite, which JSON does not allow."""
    return value if math.isfinite(value) else None


def docs_table() -> str:
    """`LOGGED` as the Markdown table in docs/measures.md; a test checks that they agree."""
    rows = [f"| `{m.tag}` | {m.name} | {m.source} | {m.about} |" for m in LOGGED.values()]
    return "\n".join(["| tag | name | logged by | how it is measured |", "|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    print(docs_table(), end="")
