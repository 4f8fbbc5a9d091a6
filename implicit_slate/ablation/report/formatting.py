"""Numbers as people read them."""

from collections.abc import Sequence


def short(value: float | None, digits: int = 3) -> str:
    """Some significant digits, as `78.3`, `1.8e6`, `4.1e-5`; `–` for what is not there."""
    if value is None:
        return "–"
    if value == float("inf"):
        return "∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text  # 1234 is 1.23e+03 in %g


def span(values: Sequence[float]) -> str:
    """The range of some values, `76.1 to 82.4`; where infinity stands for a diverged cell, also how many those are."""
    finite = [value for value in values if value != float("inf")]
    diverged = len(values) - len(finite)
    if not finite:
        return f"diverged ({diverged} of {len(values)})"
    low, high = short(min(finite)), short(max(finite))
    text = low if low == high else f"{low} to {high}"
    return f"{text} or diverged ({diverged} of {len(values)})" if diverged else text


def capitalised(text: str) -> str:
    """The text with a capital first letter and all else as it was."""
    return text[:1].upper() + text[1:]
