"""Scores of one labelled image that need no network: how its mask and its greys are."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Uint8 = npt.NDArray[np.uint8]

# Pixels below which a component is a speck: 40 nm across at 5 nm a pixel, far below mitochondria.
SPECK = 64
# Pixels that touch by a corner belong together.
NEIGHBOURS = np.ones((3, 3), dtype=bool)

# As :func:`image_scores` gives them.
SCORES = ("mask_area", "components", "specks", "border", "grey_mean", "grey_deviation")


def image_scores(image: Uint8, mask: Uint8) -> dict[str, float]:
    """Score one labelled image.

    Sums are those of integers, so that every machine gives the same digits.

    Args:
        image: uint8 (height, width), greys in [0, 255].
        mask: uint8 (height, width), 0 for background; all classes count as one.

    Returns:
        "mask_area": share of object pixels, 0 to 1.
        "components": connected objects of the mask.
        "specks": those of fewer than :data:`SPECK` pixels.
        "border": those that touch the image's border.
        "grey_mean", "grey_deviation": of all pixels, in grey levels.
    """
    labels, components = ndimage.label(mask > 0, structure=NEIGHBOURS)
    sizes = np.bincount(labels.ravel(), minlength=components + 1)[1:]
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    greys = np.bincount(image.ravel(), minlength=256).tolist()
    total = sum(level * count for level, count in enumerate(greys))
    squares = sum(level * level * count for level, count in enumerate(greys))
    pixels = image.size
    return {
        "mask_area": round(int(sizes.sum()) / pixels, 6),
        "components": int(components),
        "specks": int((sizes < SPECK).sum()),
        "border": int(np.count_nonzero(np.unique(edge))),
        "grey_mean": round(total / pixels, 4),
        "grey_deviation": round(math.sqrt(pixels * squares - total * total) / pixels, 4),
    }
