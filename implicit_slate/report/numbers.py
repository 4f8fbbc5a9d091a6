"""Numbers formatted for people."""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(value: float, digits: int = 3) -> str:
    """A number with few significant digits: `78.3`, `11,400`, `1.84·10⁶`, `4.12·10⁻⁵`; `–` for a missing value."""
    if pd.isna(value):
        return "–"
    if value == math.inf:
        return "∞"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if not -4 < power < 6:
        return f"{mantissa}·10{str(power).translate(_SUPERSCRIPTS)}"
    rounded = float(f"{mantissa}e{exponent}")
    if math.isclose(value, round(value), rel_tol=1e-9):  # a count, such as 7 evaluations
        return f"{rounded:,.0f}"
    return f"{rounded:,.{max(digits - 1 - power, 0)}f}"


def span(values: Sequence[float]) -> str:
    """The range of values, such as `76.1 to 82.4`, and the number of infinite ones, which stand for diverged cells."""
    finite = [value for value in values if value != math.inf]
    diverged = len(values) - len(finite)
    if not finite:
        return f"diverged ({diverged} of {len(values)})"
    low, high = short(min(finite)), short(max(finite))
    text = low if low == high else f"{low} to {high}"
    return f"{text} or diverged ({diverged} of {len(values)})" if diverged else text


def capitalised(text: str) -> str:
    """The text with a capital first letter, otherwise unchanged."""
    return text[:1].upper() + text[1:]


def ratio(values: pd.Series) -> float:
    """The ratio of the largest to the smallest value; 1 if any is not positive, because a log axis cannot show it."""
    return values.max() / values.min() if len(values) and values.min() > 0 else 1.0


def counted(counts: Iterable[float]) -> str:
    """The distinct counts, of which there should be one: `315`, or `50 or 315`; `–` if there is none."""
    return " or ".join(f"{count:,.0f}" for count in sorted({count for count in counts if pd.notna(count)})) or "–"
