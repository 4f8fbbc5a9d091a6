"""Test whether trained slots are fixed points, and how near each gradient mode is to the exact one."""

import argparse
import sys
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from callbacks.fixed_point_diagnostics import FixedPointDiagnostics, distance_between_sets
from data_modules.progress import meter
from implicit_slate.evaluation.command import find_checkpoints
from implicit_slate.evaluation.data import check_size, describe_data, load_images
from implicit_slate.evaluation.module import draw_slots, load_image_model
from implicit_slate.evaluation.outputs import title
from implicit_slate.files import check_writable, write_atomically
from implicit_slate.fixed_point import Solver, gradient_cosines, picard, spectral_radius
from implicit_slate.models import SlotModel

DEPTH = 64
"""Number of applications of f after which images that have not converged are left out."""
CONVERGED = 1e-3
"""Largest relative residual at which an image counts as converged."""
MODES = ("unrolled", "implicit", "truncated(1)", "neumann(3)")
"""The modes compared with the exact gradient, which is the reference of `gradient_cosines`. `bilevel` differs from
`implicit` only in the gradient of learned initial slots."""


def fixed_points(arguments: argparse.Namespace, data_options: Sequence[str]) -> int:
    """Run the command with its parsed arguments; returns the exit status."""
    rows = {}
    checkpoints = find_checkpoints(arguments.target)
    if arguments.target.is_dir():
        check_writable(arguments.target)
    with meter("fixed points", len(checkpoints), unit="models") as advance:
        for checkpoint in checkpoints:
            model = load_image_model(checkpoint).model
            data = describe_data(checkpoint, arguments.data, data_options)
            images = load_images(data, "test")
            check_size(model, checkpoint, images, data)
            places = list(range(min(arguments.images, len(images))))
            rows[title(checkpoint)] = diagnose(
                model.requires_grad_().eval(), images[places], draw_slots(model, arguments.seed, 0, places)
            )
            advance(1)
    table = pd.DataFrame(rows).T.rename_axis("model")
    if arguments.target.is_dir():
        write_atomically(arguments.target / "fixed_points.csv", table.to_csv())
    table.to_csv(sys.stdout, float_format="%.4g")
    return 0


def diagnose(model: SlotModel, batch: dict[str, Tensor], slots_init: Tensor) -> dict[str, float]:
    """Measure the refinement of images (B, C, H, W) from initial slots (B, K, S). Values are means over images, except
    for residuals, which are medians. All parameters of slot attention must require gradients.

    - `residual`, `residual_64`: relative residual after n and after 64 applications. `converged`: the share of images
      with at most 1e-3 after 64. `converged_as_sets`: the same for slots in any order, so it includes images whose
      slots only change places.
    - `starts_converged`, `fixed_points`: how many of 8 random starts of an image reach a fixed point within 500
      applications, and how many distinct ones they reach.
    - `spectral_radius`: spectral radius of the Jacobian after n applications; `spectral_radius_64`: after 64, for
      converged images only.
    - `cosine/<mode>`, `norm_ratio/<mode>`: the mode's gradient of the loss with respect to slot attention's parameters,
      compared with the exact one, after n applications; with `_64`, after 64, for converged images only.
    - `adjoint_residual`, `adjoint_residual_64`: residual of the exact gradient's backward solve; unless it is small,
      that gradient is not exact.
    """
    f, solver = model.refinement(batch["image"]), model.slot_attention.solver
    with torch.no_grad():
        solution = picard(f, slots_init, max_iterations=DEPTH)
        early = picard(f, slots_init, max_iterations=solver.max_iterations)
        again = f(solution.z)
    settled = solution.residual <= CONVERGED
    found = {
        "residual": float(early.residual.median()),
        "residual_64": float(solution.residual.median()),
        "converged": float(settled.float().mean()),
        "converged_as_sets": float((distance_between_sets(again, solution.z) <= CONVERGED).float().mean()),
        "spectral_radius": float(spectral_radius(f, early.z, tol=1e-3).mean()),
    }
    if model.slot_attention.slot_init == "gaussian":
        basins = FixedPointDiagnostics(["basins"]).basins(model, batch, slots_init)
        found["starts_converged"] = float(basins["basins/converged"].float().mean())
        found["fixed_points"] = float(basins["basins/distinct"].float().mean())
    found |= compare_modes(model, batch, slots_init, solver.max_iterations, "")
    if settled.any():
        batch, slots_init = {name: value[settled] for name, value in batch.items()}, slots_init[settled]
        f = model.refinement(batch["image"])
        found["spectral_radius_64"] = float(spectral_radius(f, solution.z[settled], tol=1e-3).mean())
        found |= compare_modes(model, batch, slots_init, DEPTH, "_64")
    return found


def compare_modes(
    model: SlotModel, batch: dict[str, Tensor], slots_init: Tensor, depth: int, suffix: str
) -> dict[str, float]:
    """Cosine and norm ratio of every mode in `MODES` after `depth` applications; see `diagnose`."""
    agreements = gradient_cosines(
        lambda slots: model.slot_loss(batch, slots), model.refinement(batch["image"]), slots_init,
        model.slot_attention.parameters(), MODES, Solver("picard", max_iterations=depth),
    )  # fmt: skip
    found = {}
    for mode, result in zip(MODES, agreements, strict=True):
        found[f"cosine/{mode}{suffix}"] = float(result.cosine)
        found[f"norm_ratio/{mode}{suffix}"] = float(result.norm_ratio)
    adjoint = agreements[0].adjoint
    assert adjoint is not None
    return found | {f"adjoint_residual{suffix}": float(adjoint.residual.median())}
