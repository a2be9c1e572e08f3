"""Strata of area and number of objects, by which a selection is given the mix of real tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

# Strata of area, as many real tiles in each, and of objects: one, two, three or more. Images
# without objects are a stratum of their own.
AREAS = 4
OBJECTS = 3
# Share of the images that may be lacking in strata of which the set has too few; the kept mix
# differs by so much from that of real tiles (total variation). Without it, the rarest kind of image
# would decide the size of the selection alone.
LACKING = 0.05


@dataclass(frozen=True)
class Strata:
    """How many real tiles there are in each stratum.

    Attributes:
        edges: inner borders of the strata of area, as shares of pixels, ascending.
        counts: real tiles in each stratum, in the order of :meth:`number`.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of_real(cls, areas: Sequence[float], objects: Sequence[int]) -> Self:
        """The strata of real tiles.

        Args:
            areas: share of object pixels of each tile.
            objects: of each tile that are not specks.
        """
        filled = [area for area, count in zip(areas, objects, strict=True) if count]
        shares = np.arange(1, AREAS) / AREAS if filled else np.empty(0)
        edges = [float(np.quantile(filled, share)) for share in shares]
        strata = cls(tuple(round(edge, 6) for edge in edges), ())
        numbers = [strata.number(a, n) for a, n in zip(areas, objects, strict=True)]
        counts = np.bincount(numbers, minlength=1 + AREAS * OBJECTS)
        return cls(strata.edges, tuple(counts.tolist()))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``; KeyError or TypeError for anything else."""
        return cls(tuple(values["edges"]), tuple(values["counts"]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    def number(self, area: float, objects: int) -> int:
        """The stratum of an image: 0 without objects, then by area, and by number within one."""
        if objects == 0:
            return 0
        by_area = int(np.searchsorted(self.edges, area, side="right"))
        return 1 + by_area * OBJECTS + min(objects, OBJECTS) - 1

    def name(self, number: int) -> str:
        """A stratum in words: "2 objects, area 0.031 to 0.062"."""
        if number == 0:
            return "no objects"
        by_area, objects = divmod(number - 1, OBJECTS)
        edges = ("0", *(f"{edge:.3g}" for edge in self.edges), "1")
        several = "1 object" if objects == 0 else f"{objects + 1} objects"
        more = " or more" if objects == OBJECTS - 1 else ""
        return f"{several}{more}, area {edges[by_area]} to {edges[by_area + 1]}"

    def quotas(self, available: Counts) -> Counts:
        """How many images of each stratum make the largest set with the mix of real tiles.

        Args:
            available: images in each stratum, int64 (strata,).

        Returns:
            int64 (strata,), nowhere more than there are. Strata of which the set has no image are
            left out of the mix; of the others all together lack at most :data:`LACKING`.
        """
        counts = np.where(available > 0, self.counts, 0).astype(np.float64)
        shares = counts / max(1.0, counts.sum())
        low, high = 0, int(available[shares > 0].sum())
        while low < high:  # the largest set of which not too much lacks
            size = (low + high + 1) // 2
            # A stratum of which the mix takes less than one image does not lack any.
            lacking = np.maximum(np.floor(shares * size) - available, 0).sum()
            low, high = (size, high) if lacking <= LACKING * size else (low, size - 1)
        quotas: Counts = np.minimum(np.rint(shares * low).astype(np.int64), available)
        return quotas

    def scarcest(self, available: Sequence[int]) -> int:
        """The stratum that limits the mix: of the fewest images for its share of real tiles."""
        shares = np.array(self.counts, dtype=np.float64)
        present = shares > 0
        ratios = np.where(present, np.array(available) / np.where(present, shares, 1), np.inf)
        return int(ratios.argmin())
