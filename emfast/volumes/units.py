"""Lengths in files as nanometres."""

from __future__ import annotations

import math
from typing import Any

# As ImageJ, OME-XML and OME-Zarr (UDUNITS) write them.
NANOMETRES = {
    "pm": 1e-3,
    "picometer": 1e-3,
    "\u00c5": 0.1,  # OME-XML's angstrom: the letter
    "\u212b": 0.1,  # and the sign
    "a": 0.1,
    "angstrom": 0.1,
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "nanometers": 1.0,
    "um": 1e3,
    "\u00b5m": 1e3,  # micro sign
    "\u03bcm": 1e3,  # Greek mu
    "\\u00b5m": 1e3,  # as ImageJ escapes it
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "micrometers": 1e3,
    "mm": 1e6,
    "millimeter": 1e6,
    "millimetre": 1e6,
    "cm": 1e7,
    "centimeter": 1e7,
    "centimetre": 1e7,
    "inch": 2.54e7,
    "in": 2.54e7,
    "m": 1e9,
    "meter": 1e9,
    "metre": 1e9,
}


def nanometres(value: Any, unit: Any) -> float | None:
    """A length in nanometres; None for an unknown unit or anything but a positive number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    factor = NANOMETRES.get(str(unit).strip()) or NANOMETRES.get(str(unit).strip().lower())
    if factor is None or not math.isfinite(number) or number <= 0:
        return None
    return number * factor
