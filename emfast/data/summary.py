"""What a stack holds, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emfast.data.stack import Stack


@dataclass(frozen=True)
class Summary:
    """What a stack holds.

    Attributes:
        slices: number of slices.
        height: of a slice, in pixels.
        width: of a slice, in pixels.
        grey_mean: of all pixels, in [0, 255].
        grey_deviation: standard deviation of all pixels.
        coverage: share of object pixels in the masks, in [0, 1], or None without masks.
        object_grey: mean grey of the object pixels, or None without any.
    """

    slices: int
    height: int
    width: int
    grey_mean: float
    grey_deviation: float
    coverage: float | None
    object_grey: float | None


def summarize(stack: Stack) -> Summary:
    """Count slices, greys and mask pixels of a stack."""
    # One histogram a slice: the deviation of a whole stack at once needs eight times its memory.
    histogram = sum(np.bincount(image.ravel(), minlength=256) for image in stack.images)
    levels = np.arange(256)
    mean = float(np.average(levels, weights=histogram))
    variance = float(np.average((levels - mean) ** 2, weights=histogram))
    slices, height, width = stack.images.shape
    coverage = object_grey = None
    if stack.masks is not None:
        coverage = float(stack.masks.mean())
        if coverage:
            pairs = zip(stack.images, stack.masks, strict=True)
            total = sum(int(image.sum(where=mask > 0)) for image, mask in pairs)
            object_grey = total / int(stack.masks.sum())
    return Summary(slices, height, width, mean, variance**0.5, coverage, object_grey)
