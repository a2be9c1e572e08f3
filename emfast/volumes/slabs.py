"""Slices gathered until a chunk of them is whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emfast.volumes.axes import Pixels

# What is gathered at most: where a chunk's slices take more, chunks of fewer slices are written.
LARGEST_SLAB = 2**28


def slab_depth(chunk: int, slice_bytes: int) -> int:
    """Slices to a chunk: ``chunk``, or the largest of its divisors that fits into memory."""
    fitting = max(1, LARGEST_SLAB // slice_bytes)
    return max(d for d in range(1, chunk + 1) if chunk % d == 0 and (d == 1 or d <= fitting))


class Slabs:
    """Cuts slices that come in any portions into slabs as they are stored.

    Args:
        slices: of the whole volume; its last slab may be thinner.
        depth: slices of a slab.
        store: takes the first slice's index and a slab.
    """

    def __init__(self, slices: int, depth: int, store: Callable[[int, Pixels], None]) -> None:
        self._slices, self._depth, self._store = slices, depth, store
        self._start = 0
        self._parts: list[Pixels] = []

    @property
    def pending(self) -> int:
        """Slices that wait for the rest of their slab."""
        return sum(map(len, self._parts))

    def add(self, start: int, slices: Pixels) -> None:
        """Take slices from ``start`` on; what is whole is stored before this returns.

        Raises:
            ValueError: slices that neither go on with the ones before nor start a slab.
        """
        expected = self._start + self.pending
        if start != expected and (self._parts or start % self._depth):
            raise ValueError(f"slice {start} does not follow {expected}, nor does it start a chunk")
        if not self._parts:
            self._start = start
        while len(slices):
            whole = min(self._depth, self._slices - self._start)
            part, slices = np.split(slices, [whole - self.pending])
            self._parts.append(part)
            if self.pending == whole:
                parts, self._parts = self._parts, []
                self._store(self._start, parts[0] if len(parts) == 1 else np.concatenate(parts))
                self._start += whole
            else:
                # The caller may use its buffer again before the slab is whole.
                self._parts[-1] = part.copy()
