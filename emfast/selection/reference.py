"""What real tiles are like: the yardstick of a selection, and the limits that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emfast.data.image import Grey
from emfast.progress import progress
from emfast.quality.copies import CALIBRATION, copy_threshold
from emfast.quality.feature_distance import neighbour_distance
from emfast.quality.features import FeatureNetwork, Features
from emfast.quality.mask_shape import components
from emfast.quality.novelty import PlaceSearch, far_slices
from emfast.quality.sets import LabelledSlices, read_real
from emfast.selection.strata import Strata
from engines.errors import UserError

# Real tiles that distances in feature space are measured to.
TILES = 400
SEED = 0
# Real tiles that are read at once for their features.
BATCH = 16


@dataclass(frozen=True)
class Limits:
    """What is usual in real tiles, for rules without a number of their own.

    Attributes:
        unit: distance of a middling real tile to those of far slices, in feature space.
        distance: largest such distance of a real tile, in that unit.
        coincidence: largest similarity of a real tile to a place in far slices.
        area: largest share of object pixels of a real tile.
        objects: largest number of objects of a real tile that are not specks.
        cut: largest number of those that touch the border.
        strata: how many real tiles there are of each area and number of objects.
    """

    unit: float
    distance: float
    coincidence: float
    area: float
    objects: int
    cut: int
    strata: Strata

    @property
    def similarity(self) -> float:
        """More similar to a real place are near copies."""
        return copy_threshold(self.coincidence)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; ValueError, KeyError or TypeError for anything else."""
        return cls(**{**values, "strata": Strata.from_dict(values["strata"])})


@dataclass(frozen=True)
class Reference:
    """Real tiles in feature space.

    Attributes:
        features: of the tiles, float32 (tiles, width).
        limits: that follow from them.
    """

    features: Features
    limits: Limits

    def distance(self, features: Features) -> npt.NDArray[np.float64]:
        """Distance of images to their nearest real tiles, in units of a middling real tile's.

        Args:
            features: float32 (count, width).

        Returns:
            float64 (count,).
        """
        return neighbour_distance(features, self.features) / self.limits.unit


def measure_reference(
    real: LabelledSlices, side: int, network: FeatureNetwork, search: PlaceSearch
) -> Reference:
    """Measure real tiles.

    Tiles are compared with those of far slices, at least a third of the stack away: neighbouring
    slices are nearly the same image. Of a single slice the two halves are compared.

    Args:
        real: slices at least as large as the images; a single one at least twice as long.
        side: of the images, in pixels.
        network: gives the features.
        search: finds places in ``real``.

    Raises:
        UserError: slices that are too small.
    """
    parts = real if len(real) > 1 else _halves(real, side)
    # A few tiles at the border are so unlike all others that beside them noise passed for tissue.
    tiles = read_real(parts, side, TILES, SEED, border=False).tiles
    vectors = []
    with progress("features of real tiles", len(tiles)) as advance:
        for first in range(0, len(tiles), BATCH):
            vectors.append(network(tiles.images[first : first + BATCH]))
            advance(len(vectors[-1]))
    features = np.concatenate(vectors)
    own = np.array([origin.slice for origin in tiles.origins])
    far = far_slices(own, len(parts))
    distances = neighbour_distance(features, features, far[:, own])
    unit = float(np.median(distances))
    chosen = np.linspace(0, len(tiles) - 1, min(CALIBRATION, len(tiles))).astype(int)
    title = "similarity of real tiles"
    if parts is real:
        matches = search.find(tiles.images[chosen], far[chosen], title)
    else:
        with PlaceSearch(parts.image, len(parts), side) as halves:
            matches = halves.find(tiles.images[chosen], far[chosen], title)
    found = [components(mask) for mask in tiles.stack().labels()]
    areas = [sum(c.area for c in mask) / side**2 for mask in found]
    objects = [sum(not c.speck for c in mask) for mask in found]
    cut = [sum(c.cut and not c.speck for c in mask) for mask in found]
    return Reference(
        features,
        Limits(
            unit=unit,
            distance=float(distances.max()) / unit,
            coincidence=max(match.similarity for match in matches),
            area=max(areas),
            objects=max(objects),
            cut=max(cut),
            strata=Strata.of_real(areas, objects),
        ),
    )


def _halves(real: LabelledSlices, side: int) -> LabelledSlices:
    """The two halves of a single slice as two slices."""
    height, width = real.image(0).shape
    if max(height, width) < 2 * side or min(height, width) < side:
        raise UserError(
            f"{real.source}: one slice of {width} x {height} pixels; it takes a second slice, or "
            f"one of at least {2 * side} x {side}, to know what real images of {side} x {side} "
            "have in common"
        )
    names = tuple(f"{real.names[0]}-{half}" for half in (1, 2))
    halves = (_Halves(real.image, names), _Halves(real.mask, names))
    return LabelledSlices(real.source, names, *halves, (0, 1))


class _Halves:
    """The two halves of an image, cut across its longer side."""

    def __init__(self, read: Callable[[int], Grey], names: tuple[str, ...]) -> None:
        self._read, self.names = read, names
        self.files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return 2

    def read(self, index: int) -> Grey:
        image = self._read(0)
        axis = int(image.shape[1] > image.shape[0])
        middle = image.shape[axis] // 2
        half = slice(middle * index, middle * (index + 1))
        return image[half] if axis == 0 else image[:, half]
