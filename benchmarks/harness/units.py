"""Quantities as text, and text of a command line as quantities."""

import math
from argparse import ArgumentTypeError

SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "s/node": ((1e-9, "ns/node"),),
    "s/image": ((1.0, "s/image"), (1e-3, "ms/image")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
    "B/s": ((1e12, "TB/s"), (1e9, "GB/s")),
    "share": ((1e-2, "%"),),
    "edges/s": ((1e9, "G edges/s"), (1e6, "M edges/s")),
}


def quantity(value: float, unit: str) -> str:
    """The value in the largest scale of its unit that leaves at least 1 before the point."""
    scales = SCALES[unit]
    factor, name = next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])
    scaled = value / factor
    return f"{scaled:,.0f} {name}" if abs(scaled) >= 1000 else f"{scaled:.3g} {name}"


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"must be above 0 and finite, got {value}")
    return value
