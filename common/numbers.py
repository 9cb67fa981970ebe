"""How tables print numbers."""

from math import inf

import numpy as np


def number(value: float, digits: int | None = None, sign: str = "") -> str:
    """A number with so many digits behind the point; without `digits`, as it would be typed: 0.05,
    2, 3e-5. From a million on, and in the second case below a thousandth, it has an exponent, so
    that 1e30 takes no line of digits and 1e-4 stands beside 3e-5. sign: "+" shows that of positive
    numbers, too."""
    large, small = 1e6 <= abs(value) < inf, 0 < abs(value) < 1e-3
    if large or (small and digits is None):
        told = np.format_float_scientific(value, digits, trim="-", sign=bool(sign), exp_digits=1)
        return told.replace("e+", "e")
    return str(value).removesuffix(".0") if digits is None else f"{value:{sign}.{digits}f}"
