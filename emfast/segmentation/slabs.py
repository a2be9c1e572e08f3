"""Instance labels of a volume that does not fit into memory.

The volume is read in slabs of a few slices, two or three times. The first reading numbers the
components of each slab and notes which of them touch those of the slab before; then the numbers of
one object are known to be one, and the last reading writes them. Between the readings only tables
are kept, whose size grows with the number of components and not of voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.segmentation.instances import (
    Bool,
    Method,
    Uint8,
    Uint32,
    background,
    check,
    check_count,
    check_mask,
    components,
    label_instances,
    load,
    place,
    spans,
)

Int64 = npt.NDArray[np.int64]
# The slices from the first to before the second index.
Read = Callable[[int, int], Bool | Uint8]
# Labels of the slices from an index on; called in order, each slice once.
Write = Callable[[int, Uint32], None]
SLAB = 16


@dataclass(frozen=True)
class InstanceLabeler:
    """Labels the instances of a volume slab by slab, with the result of
    :func:`~emfast.segmentation.instances.label_instances` on the whole.

    Memory holds one slab of ``slab`` slices, 11 bytes a voxel beside its mask, and a few numbers
    for each component of each slab. Of the methods, "watershed3d" alone has to have the whole
    volume in memory, with what :func:`label_instances` states for it.

    Attributes:
        method, min_voxels, fill_holes, spacing: as for :func:`label_instances`.
        slab: slices that are read at once.
    """

    method: Method
    min_voxels: int = 0
    fill_holes: bool = False
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    slab: int = SLAB

    def __post_init__(self) -> None:
        check(self.method, self.min_voxels)

    @property
    def readings(self) -> int:
        """How often every slice is read."""
        if self.method != "components3d":
            return 1
        return 3 if self.fill_holes else 2

    def label(
        self, slices: int, read: Read, write: Write, advance: Callable[[int], object] = lambda _: 0
    ) -> int:
        """Label a volume.

        Args:
            slices: number of slices.
            read: gives the mask of some slices, bool or uint8 (slices, height, width), not 0 is
                object; asked for every slice :attr:`readings` times.
            write: takes the index of the first slice and labels, uint32 (slices, height, width).
            advance: is told the number of slices after each reading of a slab, for a progress bar.

        Returns:
            The number of instances.

        Raises:
            UserError: as :func:`label_instances`.
        """
        if self.method == "watershed3d":
            labels = self._in_memory(read(0, slices))
            write(0, labels)
            advance(slices)
            return int(labels.max(initial=0))
        if self.method == "components3d":
            return self._components(slices, read, write, advance)
        found = 0
        for start, stop in spans(slices, self.slab):
            labels = self._in_memory(read(start, stop))
            found += place(labels, found, labels)
            write(start, labels)
            advance(stop - start)
        return found

    def _in_memory(self, mask: Bool | Uint8) -> Uint32:
        return label_instances(
            mask,
            method=self.method,
            min_voxels=self.min_voxels,
            fill_holes=self.fill_holes,
            spacing=self.spacing,
        )

    def _components(
        self, slices: int, read: Read, write: Write, advance: Callable[[int], object]
    ) -> int:
        holes: Holes | None = None
        if self.fill_holes:
            holes = Holes(slices)
            for start, stop in spans(slices, self.slab):
                holes.add(start, check_mask(read(start, stop)))
                advance(stop - start)
            holes.finish()

        def filled(start: int, stop: int) -> Bool:
            mask = check_mask(read(start, stop))
            return mask if holes is None else holes.fill(start, mask)

        joined = Joined(connectivity=26)
        for start, stop in spans(slices, self.slab):
            joined.add(start, components(filled(start, stop)))
            advance(stop - start)
        roots, sizes = joined.roots(), joined.sizes()
        whole = np.zeros(len(sizes), dtype=np.int64)
        np.add.at(whole, roots, sizes)
        first = np.arange(len(roots)) == roots
        keep = first & (whole >= max(self.min_voxels, 1))
        count = int(keep.sum())
        check_count(count)
        numbers = np.where(keep, np.cumsum(keep), 0).astype(np.uint32)[roots]
        for start, stop in spans(slices, self.slab):
            labels = components(filled(start, stop))
            write(start, joined.look_up(start, labels, numbers))
            advance(stop - start)
        return count


class Joined:
    """Components of slabs, and which of them are one.

    A component of the volume goes by the number of its first one: components of the slabs are
    numbered through, from 0, in the order of their first voxels.

    Args:
        connectivity: 26, or 6 for shared faces alone.
    """

    def __init__(self, connectivity: int) -> None:
        reach = range(-1, 2) if connectivity == 26 else range(1)
        self._shifts = [(row, column) for row in reach for column in reach]
        self._offsets: dict[int, int] = {}
        self._sizes: list[Int64] = []
        self._pairs: list[Int64] = []
        self._last: Int64 | None = None
        self._count = 0

    def add(self, start: int, labels: Uint32) -> None:
        """Take the next slab.

        Args:
            start: index of its first slice.
            labels: uint32 (slices, height, width), 1..n in the order of their first voxels.
        """
        sizes = np.bincount(labels.ravel(), minlength=1)[1:]
        self._offsets[start] = self._count
        self._sizes.append(sizes)
        first, last = (self._numbers(labels[end]) for end in (0, -1))
        if self._last is not None:
            self._pairs.append(self._touching(self._last, first))
        self._last = last
        self._count += len(sizes)

    def _numbers(self, plane: Uint32) -> Int64:
        """Numbers of the components in a plane; -1 for none."""
        return np.where(plane > 0, plane.astype(np.int64) - 1 + self._count, -1)

    def _touching(self, before: Int64, after: Int64) -> Int64:
        """Unique pairs of neighbouring numbers of two planes, int64 (pairs, 2)."""
        height, width = before.shape
        found = []
        for row, column in self._shifts:
            a = before[
                max(-row, 0) : height - max(row, 0), max(-column, 0) : width - max(column, 0)
            ]
            b = after[max(row, 0) : height - max(-row, 0), max(column, 0) : width - max(-column, 0)]
            both = (a >= 0) & (b >= 0)
            found.append(np.unique(np.stack([a[both], b[both]], axis=1), axis=0))
        return np.unique(np.concatenate(found), axis=0)

    def sizes(self) -> Int64:
        """Voxels of each component of a slab."""
        return np.concatenate(self._sizes)

    def roots(self) -> Int64:
        """For each component of a slab the number of the first one that it is one with."""
        sparse, graph = load("scipy.sparse"), load("scipy.sparse.csgraph")
        empty = np.zeros((0, 2), dtype=np.int64)
        pairs = np.concatenate([empty, *self._pairs])
        shape = (self._count, self._count)
        links = sparse.coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape)
        _, group = graph.connected_components(links, directed=False)
        _, first = np.unique(group, return_index=True)
        roots: Int64 = first[group]
        return roots

    def look_up(self, start: int, labels: Uint32, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values of the components at the voxels of a slab that was added; 0 at the background."""
        count = int(labels.max(initial=0))
        offset = self._offsets[start]
        table = np.zeros(count + 1, dtype=values.dtype)
        table[1:] = values[offset : offset + count]
        result: npt.NDArray[Any] = table[labels]
        return result


class Holes:
    """Background that shared faces do not join to the border of the volume.

    Args:
        slices: of the volume.
    """

    def __init__(self, slices: int) -> None:
        self._slices = slices
        self._joined = Joined(connectivity=6)
        self._outside: list[Bool] = []

    def add(self, start: int, mask: Bool) -> None:
        """Take the next slab."""
        labels = background(mask)
        self._joined.add(start, labels)
        outside = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.bool_)
        for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
            outside[edge] = True
        if start == 0:
            outside[labels[0]] = True
        if start + len(labels) == self._slices:
            outside[labels[-1]] = True
        self._outside.append(outside[1:])

    def finish(self) -> None:
        """After the last slab: decide which background is a hole."""
        roots = self._joined.roots()
        touches = np.zeros(len(roots), dtype=np.bool_)
        np.logical_or.at(touches, roots, np.concatenate(self._outside))
        self._holes = ~touches[roots]

    def fill(self, start: int, mask: Bool) -> Bool:
        """A slab that was added, with its holes filled."""
        filled: Bool = mask | self._joined.look_up(start, background(mask), self._holes)
        return filled
