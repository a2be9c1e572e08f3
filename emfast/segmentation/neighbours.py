"""The median of the probability across neighbouring slices, as they stream by."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from emfast.segmentation.predicted import Predicted
from engines.errors import UserError


def check_median(window: int) -> None:
    """:class:`UserError` for a window without a middle."""
    if window < 1 or window % 2 == 0:
        raise UserError(f"median {window}: give an odd number of slices, 1 for none")


class Median:
    """Replaces each probability by the median of those of its neighbours and itself.

    At the ends of the volume the window is cut. Memory holds ``window`` slices.

    Args:
        window: number of slices, odd.
        slices: of the volume.
    """

    def __init__(self, window: int, slices: int) -> None:
        self._half, self._slices = window // 2, slices
        self._held: deque[Predicted] = deque(maxlen=window)

    def push(self, item: Predicted) -> Iterator[Predicted]:
        """Take the next slice.

        Slices may be left out: those whose neighbours did not come are not given.

        Yields:
            The slices whose window is now complete, in order.
        """
        if self._held and item.index != self._held[-1].index + 1:
            self._held.clear()
        self._held.append(item)
        centre = item.index - self._half
        yield from self._at(centre)
        if item.index == self._slices - 1:
            for later in range(centre + 1, self._slices):
                yield from self._at(later)

    def _at(self, centre: int) -> Iterator[Predicted]:
        first, offset = max(centre - self._half, 0), self._held[0].index
        if centre < 0 or first < offset:
            return
        stop = min(centre + self._half, self._slices - 1) + 1
        window = [self._held[i - offset].probability for i in range(first, stop)]
        middle = np.median(np.stack(window), axis=0).astype(np.float32)
        yield replace(self._held[centre - offset], probability=middle)
