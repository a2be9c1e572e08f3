"""Stored greys of any number type, made what the network sees.

Each slice, or the whole volume, is standardised: x = (grey - mean) / standard deviation. Bytes give
exactly what the network was trained on. For other types three things are taken care of:

- NaN and infinities are no greys: they are left out of the statistics and become the mean.
- Single pixels far from all others (hot and dead pixels, sparks), of which 16 bits and floats hold
  arbitrarily bright ones, would make all else one grey. What is farther outside the range from the
  1st to the 99th percentile than that range is wide is clipped there. A slice of ordinary contrast
  has no such pixels.
- A deviation that is nothing but rounding counts as none. What the network makes of a slice of one
  grey means nothing, so that it is told as blank and its probability becomes 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.segmentation.preprocessing import Normalization
from engines.errors import UserError

Pixels = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

PERCENTILES = (1.0, 99.0)
# Percentiles come from so many pixels of a slice, in rows and columns of equal distance.
SAMPLED = 2**18
# Slices of a volume, evenly spread, whose percentiles decide what is clipped in all.
SAMPLED_SLICES = 16
# A slice whose greys differ by less than this share of the deviation is blank.
BLANK = 1e-5
# A deviation of floats below so many units in the last place of the largest value is rounding.
ROUNDING = 16


@dataclass(frozen=True)
class Statistics:
    """What greys are standardised with.

    Attributes:
        mean, deviation: of the greys after clipping; the deviation is positive.
        low, high: greys beyond are clipped; -inf and inf for none.
    """

    mean: float
    deviation: float
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Greys:
    """How to read the greys of a volume.

    Attributes:
        invert: whether to turn black into white first: the network knows dark membranes on a
            bright ground.
        limits: greys beyond are clipped, instead of those far outside the percentiles. For a
            network of "unit" normalisation they are black and white.
        statistics: of the whole volume; None standardises each slice by its own.
    """

    invert: bool = False
    limits: tuple[float, float] | None = None
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        low, high = self.limits or (0.0, 1.0)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"range {low:g} {high:g}: give two numbers, the smaller one first")


@dataclass(frozen=True)
class Prepared:
    """One slice for the network.

    Attributes:
        x: float32 (height, width), of mean 0 and deviation 1, or within [0, 1] for "unit".
        invalid: bool (height, width), where the slice holds no number, or None for nowhere.
        clipped: number of pixels that were clipped.
        blank: whether all its numbers are one grey, if there are any.
    """

    x: Float32
    invalid: Bool | None
    clipped: int
    blank: bool

    def erase(self, probability: Float32) -> None:
        """Put 0 where the slice shows nothing: float32 (classes, height, width), in place."""
        if self.blank:
            probability[:] = 0
        elif self.invalid is not None:
            probability[:, self.invalid] = 0


def prepare(image: Pixels, normalization: Normalization, greys: Greys) -> Prepared:
    """Make one slice what the network sees.

    Args:
        image: integers or floats (height, width).
        normalization: of the network.
        greys: how to read it.

    Raises:
        UserError: "unit" for another type than uint8 without limits: what is white is not known.
    """
    valid = _valid(image)
    invalid = None if valid is None else ~valid
    if normalization == "unit":
        scale = greys.limits or ((0.0, 255.0) if image.dtype == np.uint8 else None)
        if scale is None:
            raise UserError(
                f"the network takes greys from black to white, and which {image.dtype} values "
                "those are is not known; say it with --range"
            )
        low, high = scale
        mean, deviation = low, high - low
        clipped = 0 if greys.limits is None else _outside(image, low, high)
    else:
        statistics = greys.statistics or measure(image, greys.limits)
        low, high = statistics.low, statistics.high
        mean, deviation = statistics.mean, statistics.deviation
        clipped = _outside(image, low, high)
    x = _standardise(image, mean, deviation, low, high, bool(clipped))
    if greys.invert:
        np.subtract(1.0 if normalization == "unit" else 0.0, x, out=x)
    if valid is not None:
        x[~valid] = x[valid].mean() if normalization == "unit" and valid.any() else 0.0
    return Prepared(x, invalid, clipped, _blank(x if valid is None else x[valid]))


def measure(image: Pixels, limits: tuple[float, float] | None = None) -> Statistics:
    """The statistics of one slice, integers or floats (height, width)."""
    low, high = limits or _outlier_limits(image)
    count, mean, squares = _moments(image, low, high)
    return _statistics(count, mean, squares, low, high, image.dtype)


def measure_volume(
    read: Callable[[int], Pixels],
    slices: int,
    limits: tuple[float, float] | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Statistics:
    """The statistics of a volume, slice by slice.

    Args:
        read: gives the slice of an index.
        slices: number of slices.
        limits: greys beyond are clipped.
        advance: is told 1 after each slice, for a progress bar.
    """
    if limits is None:
        chosen = np.unique(np.linspace(0, slices - 1, min(slices, SAMPLED_SLICES)).astype(int))
        found = [_outlier_limits(read(int(index))) for index in chosen]
        limits = min(low for low, _ in found), max(high for _, high in found)
    low, high = limits
    count, mean, squares = 0, 0.0, 0.0
    dtype = np.dtype(np.uint8)
    for index in range(slices):
        image = read(index)
        dtype = image.dtype
        more, other, spread = _moments(image, low, high)
        if more:  # Chan, Golub and LeVeque, The American Statistician 37, 1983, equation 2.1
            total = count + more
            squares += spread + (other - mean) ** 2 * count * more / total
            mean += (other - mean) * more / total
            count = total
        advance(1)
    return _statistics(count, mean, squares, low, high, dtype)


def _valid(image: Pixels) -> Bool | None:
    """Where a slice holds numbers; None for everywhere."""
    if image.dtype.kind != "f":
        return None
    finite: Bool = np.isfinite(image)
    return None if finite.all() else finite


def _blank(x: Float32) -> bool:
    return x.size > 0 and float(x.max()) - float(x.min()) < BLANK


def _outlier_limits(image: Pixels) -> tuple[float, float]:
    if image.dtype == np.uint8:
        return -math.inf, math.inf
    step = max(1, math.isqrt(max(image.size // SAMPLED, 1)))
    sample = image[::step, ::step]
    if image.dtype.kind == "f":
        sample = sample[np.isfinite(sample)]
    if not sample.size:
        return -math.inf, math.inf
    first, last = (float(v) for v in np.percentile(sample, PERCENTILES))
    # Nearly all of one grey: the rest is the contrast, whatever its value.
    if first == last:
        return -math.inf, math.inf
    return first - (last - first), last + (last - first)


def _outside(image: Pixels, low: float, high: float) -> int:
    """Number of pixels beyond the limits; NaN and infinities are not counted."""
    if math.isinf(low) and math.isinf(high):
        return 0
    beyond = (image < low) | (image > high)
    if image.dtype.kind == "f":
        beyond &= np.isfinite(image)
    return int(np.count_nonzero(beyond))


def _moments(image: Pixels, low: float, high: float) -> tuple[int, float, float]:
    """Number of greys, their mean and the sum of squares of their distances from it."""
    valid = _valid(image)
    values = image if valid is None else image[valid]
    if not values.size:
        return 0, 0.0, 0.0
    if _outside(values, low, high):
        values = np.clip(values.astype(np.float64), low, high)
    mean = float(values.mean(dtype=np.float64))
    return values.size, mean, float(values.var(dtype=np.float64)) * values.size


def _statistics(
    count: int, mean: float, squares: float, low: float, high: float, dtype: np.dtype[Any]
) -> Statistics:
    deviation = math.sqrt(squares / count) if count else 0.0
    if dtype.kind == "f":
        least = ROUNDING * float(np.finfo(dtype).eps) * abs(mean)
        deviation = deviation if deviation > least else max(1.0, abs(mean))
    else:
        # Noise of less than a grey level is not blown up to contrast.
        deviation = max(deviation, 1.0)
    return Statistics(mean, deviation, low, high)


def _standardise(
    image: Pixels, mean: float, deviation: float, low: float, high: float, clip: bool
) -> Float32:
    """(image - mean) / deviation as float32, of numbers that float32 itself may not tell apart."""
    wide = image.dtype.itemsize > 2
    x: Pixels = image.astype(np.float64 if wide else np.float32)
    if clip:
        np.clip(x, low, high, out=x)
    np.subtract(x, mean, out=x)
    np.divide(x, deviation, out=x)
    return x.astype(np.float32, copy=False)
