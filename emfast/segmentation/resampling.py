"""Between the pixels of a volume and those that the network was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.errors import UserError

Float32 = npt.NDArray[np.float32]
# Pixel sizes that differ by no more than this share are taken as equal.
TOLERANCE = 0.05
# Beyond this factor a pixel size is rather wrong than worth resampling.
LARGEST_FACTOR = 8.0


def factors(
    pixel_size: tuple[float, float] | None, trained: float | None
) -> tuple[float, float] | None:
    """By how much rows and columns have to grow.

    Args:
        pixel_size: height and width of the volume's pixels in nm, or None where it is not known.
        trained: that of the network's training in nm, or None where it is not known.

    Returns:
        None where nothing has to be resampled.

    Raises:
        UserError: sizes that are not positive, or too far apart to be true.
    """
    if pixel_size is None or trained is None:
        return None
    if not all(math.isfinite(size) and size > 0 for size in pixel_size):
        raise UserError(f"pixel size {pixel_size[0]:g}: give a length in nm above 0")
    vertical, horizontal = (size / trained for size in pixel_size)
    if not all(1 / LARGEST_FACTOR <= f <= LARGEST_FACTOR for f in (vertical, horizontal)):
        raise UserError(
            f"pixels of {pixel_size[0]:g} x {pixel_size[1]:g} nm, but the network was trained on "
            f"{trained:g} nm, more than {LARGEST_FACTOR:g} times apart; correct it with "
            "--pixel-size, in nm"
        )
    if all(abs(f - 1) <= TOLERANCE for f in (vertical, horizontal)):
        return None
    return vertical, horizontal


def grown(size: tuple[int, int], by: tuple[float, float]) -> tuple[int, int]:
    """Height and width in pixels after resampling; at least 1."""
    height, width = (max(1, round(side * factor)) for side, factor in zip(size, by, strict=True))
    return height, width


def resample(planes: Float32, size: tuple[int, int], *, smooth: bool) -> Float32:
    """Resample the last two axes, antialiased where they shrink.

    Args:
        planes: float32 (..., height, width).
        size: new height and width.
        smooth: cubic, for greys; else linear, which keeps probabilities within [0, 1].
    """
    if planes.shape[-2:] == size:
        return planes
    kernel = Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR
    flat: Any = planes.reshape(-1, *planes.shape[-2:])
    result = np.empty((len(flat), *size), dtype=np.float32)
    for plane, out in zip(flat, result, strict=True):
        out[:] = np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size[::-1], kernel))
    return result.reshape(*planes.shape[:-2], *size)


def network_input(planes: Sequence[Float32], by: tuple[float, float] | None) -> Float32:
    """Prepared slices of one size as the network's input, resampled.

    Args:
        planes: float32 (height, width).
        by: growth of rows and columns, as :func:`factors` gives it.

    Returns:
        float32 (slices, 1, height, width).
    """
    x = np.stack(planes)[:, None]
    if by is None:
        return x
    height, width = x.shape[-2:]
    return resample(x, grown((height, width), by), smooth=True)
