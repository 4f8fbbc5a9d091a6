"""How a cell gets its slots and their gradient: what a report compares by colour, and what it calls it."""

from collections.abc import Sequence
from typing import NamedTuple


class Method(NamedTuple):
    """A gradient mode after a forward solver, both as the grid's axes name them."""

    gradient: str
    solver: str = "picard"


UNROLLED = Method("unrolled")
IMPLICIT = IN = Method("implicit")
IB = Method("exact(broyden, 7)")
BN = Method("implicit", "broyden")
BB = Method("exact(broyden, 7)", "broyden")

PAPER_NAMES = {UNROLLED: "unrolled", IN: "IN", IB: "IB", BN: "BN", BB: "BB"}
"""The paper's variants: the first letter is the forward solver (iterate, Broyden), the second the backward one
(Neumann: one recorded application; Broyden)."""


def labels(methods: Sequence[Method]) -> dict[Method, str]:
    """What to call each: by the gradient if all have one solver, by the paper's name if all have one, else by both."""
    if len({method.solver for method in methods}) < 2:
        return {method: method.gradient for method in methods}
    if all(method in PAPER_NAMES for method in methods):
        return {method: PAPER_NAMES[method] for method in methods}
    return {method: method.gradient if method == UNROLLED else ", ".join(method) for method in methods}
