"""Grey levels of two sets: histograms, and the seed paper's score of their similarity."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Uint8 = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

LEVELS = 256


def grey_histogram(
    image: Uint8, mask: Uint8 | None = None, weights: Counts | None = None
) -> Counts:
    """Count the pixels of each grey level.

    Args:
        image: uint8, any shape, greys in [0, 255].
        mask: uint8 of the same shape; only pixels where it is not 0 are counted.
        weights: int64 of the same shape, how often each pixel is counted; once by default.

    Returns:
        int64 (256,).
    """
    inside = slice(None) if mask is None else mask.ravel() > 0
    greys = image.ravel()[inside]
    if weights is None:
        return np.bincount(greys, minlength=LEVELS).astype(np.int64)
    # The sums are of floats, exact below 2^53.
    sums = np.bincount(greys, weights=weights.ravel()[inside], minlength=LEVELS)
    return sums.astype(np.int64)


def mean_deviation(histogram: Counts) -> tuple[float, float] | None:
    """Mean and standard deviation of the pixels that a histogram counts; None for no pixels."""
    if not histogram.sum():
        return None
    levels = np.arange(LEVELS)
    mean = float(np.average(levels, weights=histogram))
    return mean, math.sqrt(np.average((levels - mean) ** 2, weights=histogram))


def grey_distance(first: Counts, second: Counts) -> float | None:
    """Formula (2) of the seed paper: (mu_1 - mu_2)^2 + (sigma_1 - sigma_2)^2.

    The Frechet distance of two Gaussians in one dimension, which the paper calls FID. It compares
    the mean and the standard deviation of the grey levels of all pixels at once and nothing else:
    one gain and one offset for a whole set bring it to 0.

    Args:
        first, second: int64 (256,), counts of all pixels of a set, or of its mitochondria.

    Returns:
        In squared grey levels, or None where a histogram is empty.
    """
    moments_1, moments_2 = mean_deviation(first), mean_deviation(second)
    if moments_1 is None or moments_2 is None:
        return None
    (mean_1, deviation_1), (mean_2, deviation_2) = moments_1, moments_2
    return (mean_1 - mean_2) ** 2 + (deviation_1 - deviation_2) ** 2
