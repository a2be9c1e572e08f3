"""Slices for the eye."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Uint8 = npt.NDArray[np.uint8]
# Shares of the greys of a slice that an overlay shows as black and as white, in percent.
SHOWN = (0.5, 99.5)


def shown(image: npt.NDArray[Any]) -> Uint8:
    """A slice as 8-bit greys for the eye; bytes stay as they are.

    Args:
        image: integers or floats (height, width).
    """
    if image.dtype == np.uint8:
        result: Uint8 = image
        return result
    x = image.astype(np.float64)
    finite = np.isfinite(x)
    low, high = np.percentile(x[finite], SHOWN) if finite.any() else (0.0, 1.0)
    x = (np.where(finite, x, low) - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
