"""What a mask's objects are like: how many, how large, of what shape, whole or cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage.measure import label, regionprops

from emfast.quality.image_scores import SPECK

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Component:
    """One connected object of a mask; pixels that touch by a corner belong together.

    Attributes:
        area: in pixels.
        cut: whether it touches the image's border.
        eccentricity: of the ellipse with the same second moments, 0 (circle) to 1 (line); None for
            a speck, whose shape is that of the pixel grid.
        solidity: share of its convex hull that it fills, 0 to 1; None for a speck.
    """

    area: int
    cut: bool
    eccentricity: float | None
    solidity: float | None

    @property
    def speck(self) -> bool:
        """Whether it is smaller than :data:`~emfast.quality.image_scores.SPECK` pixels."""
        return self.area < SPECK


def components(mask: Uint8) -> tuple[Component, ...]:
    """The objects of a mask.

    Args:
        mask: uint8 (height, width), 0 for background.
    """
    height, width = mask.shape
    found = []
    for region in regionprops(label(mask > 0, connectivity=2)):
        top, left, bottom, right = region.bbox
        whole = region.area >= SPECK
        found.append(
            Component(
                area=int(region.area),
                cut=top == 0 or left == 0 or bottom == height or right == width,
                eccentricity=float(region.eccentricity) if whole else None,
                solidity=float(region.solidity) if whole else None,
            )
        )
    return tuple(found)


def mask_statistics(masks: Sequence[tuple[Component, ...]], pixels: int) -> dict[str, float | None]:
    """Statistics of a set of masks.

    Args:
        masks: the components of each mask.
        pixels: of one mask.

    Returns:
        "area_fraction": share of object pixels.
        "empty": share of masks without objects.
        "components": objects a mask.
        "specks": share of the objects that are specks.
        "cut": share of the objects that touch the border.
        "size": median area, in pixels, of objects that are not specks.
        "eccentricity", "solidity": their means.
        Shares of no objects, and medians and means of none, are None.
    """
    objects = [component for mask in masks for component in mask]
    whole = [component for component in objects if not component.speck]

    def mean(values: Sequence[float | bool | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return {
        "area_fraction": sum(c.area for c in objects) / (pixels * len(masks)),
        "empty": mean([not mask for mask in masks]),
        "components": len(objects) / len(masks),
        "specks": mean([c.speck for c in objects]),
        "cut": mean([c.cut for c in objects]),
        "size": float(np.median([c.area for c in whole])) if whole else None,
        "eccentricity": mean([c.eccentricity for c in whole]),
        "solidity": mean([c.solidity for c in whole]),
    }
