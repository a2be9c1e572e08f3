"""Masks without specks and holes: what a denoiser leaves at the edges of its objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from emfast.quality.image_scores import NEIGHBOURS, SPECK

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Repaired:
    """A repaired mask and what was changed.

    Attributes:
        mask: uint8 (height, width), 0 background and 1 object.
        specks_dropped, holes_filled: numbers of them.
        pixels_dropped, pixels_filled: their pixels.
    """

    mask: Uint8
    specks_dropped: int
    pixels_dropped: int
    holes_filled: int
    pixels_filled: int

    @property
    def changed(self) -> bool:
        """Whether the mask is another one than before."""
        return bool(self.pixels_dropped or self.pixels_filled)


@dataclass(frozen=True)
class Repair:
    """What is repaired: holes are filled, then specks dropped.

    A speck at the image's border stays: a tile of real tissue cuts such pieces off the objects
    beside it.

    Attributes:
        speck: objects of fewer pixels are dropped.
    """

    speck: int = SPECK

    def __call__(self, mask: Uint8) -> Repaired:
        """Repair a mask.

        Args:
            mask: uint8 (height, width), 0 background and 1 object.
        """
        # Pixels that touch by a corner belong to one object, and so not to one hole.
        background, holes = ndimage.label(mask == 0)
        filled = np.isin(background, _inside(background, holes))
        objects, count = ndimage.label((mask > 0) | filled, NEIGHBOURS)
        sizes = np.bincount(objects.ravel(), minlength=count + 1)
        specks = [number for number in _inside(objects, count) if sizes[number] < self.speck]
        dropped = np.isin(objects, specks)
        whole = (objects > 0) & ~dropped
        return Repaired(
            mask=whole.astype(np.uint8),
            specks_dropped=len(specks),
            # A hole that was filled and dropped with its speck was background all along.
            pixels_dropped=int((dropped & (mask > 0)).sum()),
            holes_filled=len(np.unique(background[filled & whole])),
            pixels_filled=int((filled & whole).sum()),
        )


def _inside(labels: npt.NDArray[np.int32], count: int) -> list[int]:
    """Those of the regions from 1 to ``count`` that do not touch the image's border."""
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return sorted(set(range(1, count + 1)) - set(np.unique(border).tolist()))
