"""The outlines of a mask's objects as polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.segmentation.preprocessing import Uint8

Ring = npt.NDArray[np.float64]


def contours(labels: Uint8, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every object of a slice: what touches by a side or a corner is one.

    Rings run half way between pixels of the object and others, by marching squares
    (scikit-image's ``find_contours``), so that the pixels inside are those of the object.

    Args:
        labels: uint8 (height, width), 0 for background or a label.
        names: of the labels, from 1.

    Returns:
        JSON-ready objects: ``label``, ``pixels``, ``exterior`` and ``holes``. A ring is a list of
        [x, y] in pixels, (0, 0) being the centre of the first pixel; its last point is its first.
    """
    from skimage.measure import label, regionprops

    objects = []
    for value, name in enumerate(names, start=1):
        for region in regionprops(label(labels == value, connectivity=2)):
            rings = _rings(region.image, region.bbox[0], region.bbox[1])
            exterior, *holes = (ring.round(1).tolist() for ring in rings)
            objects.append(
                {
                    "label": name,
                    "pixels": int(region.num_pixels),
                    "exterior": exterior,
                    "holes": holes,
                }
            )
    return objects


def _rings(mask: npt.NDArray[np.bool_], top: int, left: int) -> list[Ring]:
    """The closed outlines of one object, the outer one first, as (x, y)."""
    from skimage.measure import find_contours

    # Background around it closes the outlines that the object's box would cut.
    field = np.pad(mask.astype(np.float32), 1)
    rings = find_contours(field, 0.5, fully_connected="high")
    rings.sort(key=_area, reverse=True)
    return [ring[:, ::-1] + (left - 1, top - 1) for ring in rings]


def _area(ring: Ring) -> float:
    """Of the inside, by the shoelace formula."""
    y, x = ring.T
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
