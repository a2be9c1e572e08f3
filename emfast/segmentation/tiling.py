"""Running large slices as overlapping tiles whose cut edges cannot be seen.

Tiles begin at multiples of the network's pooling factor, so that pooling groups the same pixels as
in the whole slice, and only the part of a tile is kept that lies a halo away from its cut edges.
The halo of 128 pixels is wider than the 107 pixels that a U-Net of five levels looks to either
side, so that the kept part is what the whole slice would have given. Edges of the slice itself are
not cut edges: tiles there see the border as the whole slice does.

A narrower halo takes less time and is not exact: the parts that neighbours share are then blended
by weights that rise linearly from the cut edges, so that no seam shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

HALO = 128


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in pixels of the padded slice.

    Attributes:
        start, stop: what the network sees.
        keep_start, keep_stop: the part of it that is kept.
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int

    @property
    def seen(self) -> slice:
        """The tile, in the slice."""
        return slice(self.start, self.stop)

    @property
    def kept(self) -> slice:
        """The kept part, in the slice."""
        return slice(self.keep_start, self.keep_stop)

    @property
    def kept_in_tile(self) -> slice:
        """The kept part, in the tile."""
        return slice(self.keep_start - self.start, self.keep_stop - self.start)


def least_tile(multiple: int, halo: int | None = None) -> int:
    """The smallest side of a tile of which something is kept between two halos."""
    return 2 * _round_up(HALO if halo is None else halo, multiple) + multiple


def spans(length: int, tile: int, multiple: int, halo: int | None = None) -> list[Span]:
    """Cover an axis with equally long tiles.

    Args:
        length: of the axis, divisible by ``multiple``.
        tile: longest tile, at least :func:`least_tile`.
        multiple: tiles begin and end at its multiples.
        halo: pixels between a cut edge and what is kept; :data:`HALO` by default.

    Returns:
        Tiles whose kept parts cover the axis without overlap, in order; one if the axis fits.
    """
    tile -= tile % multiple
    if length <= tile:
        return [Span(0, length, 0, length)]
    halo = _round_up(HALO if halo is None else halo, multiple)
    steps = -(-(length - tile) // (tile - 2 * halo))
    starts = [i * (length - tile) // steps // multiple * multiple for i in range(steps + 1)]
    # Neighbours overlap by two halos at least; they meet in the middle of the overlap.
    cuts = [(a + tile + b) // 2 for a, b in pairwise(starts)]
    return [
        Span(start, start + tile, first, last)
        for start, first, last in zip(starts, [0, *cuts], [*cuts, length], strict=True)
    ]


def ramps(spans: Sequence[Span], halo: int) -> list[npt.NDArray[np.float32]]:
    """Weights of each tile's pixels along one axis, with which neighbours are blended.

    Args:
        spans: of the axis, in order.
        halo: of the tiles; the weights rise over twice as many pixels.

    Returns:
        For each span float32 (stop - start,) in [0, 1]. At each pixel of the axis those of all
        spans add up to 1.
    """
    length = spans[-1].stop
    raw, total = [], np.zeros(length)
    for span in spans:
        place = np.arange(span.start, span.stop) + 0.5
        weight = np.ones(len(place))
        if span.start > 0:
            weight = np.minimum(weight, (place - span.start) / (2 * halo))
        if span.stop < length:
            weight = np.minimum(weight, (span.stop - place) / (2 * halo))
        raw.append(weight)
        total[span.seen] += weight
    return [
        (weight / total[span.seen]).astype(np.float32)
        for span, weight in zip(spans, raw, strict=True)
    ]


def pad(x: npt.NDArray[np.float32], multiple: int) -> npt.NDArray[np.float32]:
    """Extend the last two axes to multiples of ``multiple`` by mirroring, after their ends.

    Args:
        x: float32 (slices, channels, height, width), of any size from 1 x 1.

    Returns:
        float32 (slices, channels, height or more, width or more).
    """
    height, width = x.shape[-2:]
    below, right = _round_up(height, multiple) - height, _round_up(width, multiple) - width
    if below == right == 0:
        return x
    return np.pad(x, ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
