"""How a measured quantity grows with n: least squares, and what counts as O(1) and as O(n)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FLAT, LINEAR = 0.03, 0.1
"""Of the growth of n. From n = 2 to 32, what grows at most 1.45-fold is O(1), and what grows 2.5-fold or more, along a
line, is O(n): a part that does not depend on n, such as the gradients of the weights, is in everything."""
LINE = 0.9
"""The least R² that makes it a line."""


class Fit(NamedTuple):
    """value ≈ constant + slope · n by least squares, and value ≈ c · n^exponent by least squares of the logarithms."""

    constant: float
    slope: float
    r_squared: float
    exponent: float
    growth: float
    """The value at the largest n over that at the smallest."""
    order: str
    """`O(1)`, `O(n)`, or `unclear`."""


def fit(n: Sequence[int], values: Sequence[float]) -> Fit:
    """At two n or more, in rising order, with positive values.

    The order follows from (growth of the value - 1) / (growth of n - 1), which is 0 for what does not grow and 1 for
    what is proportional to n: O(1) up to `FLAT`; O(n) from `LINEAR` on if R² is at least `LINE`; unclear otherwise.
    """
    x, y = np.asarray(n, dtype=float), np.asarray(values, dtype=float)
    slope, constant = np.polyfit(x, y, 1)
    exponent, _ = np.polyfit(np.log(x), np.log(y), 1)
    spread = ((y - y.mean()) ** 2).sum()
    r_squared = 1 - ((y - constant - slope * x) ** 2).sum() / spread if spread > 0 else 1.0
    growth = y[-1] / y[0]
    relative = (growth - 1) / (x[-1] / x[0] - 1)
    if relative <= FLAT:
        order = "O(1)"
    elif relative >= LINEAR and r_squared >= LINE:
        order = "O(n)"
    else:
        order = "unclear"
    return Fit(float(constant), float(slope), float(r_squared), float(exponent), float(growth), order)
