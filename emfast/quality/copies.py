"""How many images of a synthetic set are near copies of a place in the real slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emfast.data.tiles import Tiles
from emfast.quality.novelty import COARSE_SIDE, Match, far_slices, find_matches, similarity
from emfast.quality.sets import LabelledSlices, RealSet

# Real tiles that are searched for in far slices, to know what a coincidence looks like.
CALIBRATION = 200
# Places that the first pass of the search may try: 1200 images of 256 x 256 pixels in 165 slices of
# 1024 x 768.
SEARCH_PLACES = 2e10
LEAST_SEARCHED = 50


@dataclass(frozen=True)
class Novelty:
    """How similar the synthetic images are to places of the real slices.

    Attributes:
        searched: indices of the synthetic images that were searched for.
        matches: the most similar place of each.
        tiles: indices of the real tiles that were searched for in far slices.
        coincidences: the most similar far place of each of those tiles.
        neighbours: similarity of those tiles to the same place of the next slice.
    """

    searched: tuple[int, ...]
    matches: tuple[Match, ...]
    tiles: tuple[int, ...]
    coincidences: tuple[Match, ...]
    neighbours: tuple[float, ...]

    @property
    def coincidence(self) -> float:
        """The largest similarity of a real tile to a far slice."""
        return max(match.similarity for match in self.coincidences)

    @property
    def threshold(self) -> float:
        """Near copies are above it: see :func:`copy_threshold`."""
        return copy_threshold(self.coincidence)

    @property
    def near_copies(self) -> float:
        """Share of near copies among the images that were searched for."""
        return self._share_above(self.threshold)

    @property
    def suspects(self) -> float:
        """Share of the images that are more similar to a real place than any coincidence.

        The largest of k + 1 similarities of one kind is any of them with equal chance: of a set
        that copies nothing, a share of 1 / (k + 1) is expected, for k coincidences.
        """
        return self._share_above(self.coincidence)

    def _share_above(self, similarity: float) -> float:
        return float(np.mean([match.similarity > similarity for match in self.matches]))


def copy_threshold(coincidence: float) -> float:
    """Half way from the largest similarity of unrelated tissue to a copy, 1."""
    return (1 + coincidence) / 2


def search_copies(
    real: LabelledSlices, real_set: RealSet, tiles: Tiles, rng: np.random.Generator
) -> Novelty:
    """Search a synthetic set for near copies.

    Args:
        real: the slices to search; all of them.
        real_set: whose tiles tell how similar far slices are by coincidence.
        tiles: the synthetic images. Of a large real set only as many of them are searched for as
            :data:`SEARCH_PLACES` allows.
        rng: source of the choices.
    """
    side = tiles.images.shape[1]
    reduced = (side // COARSE_SIDE) ** 2
    affordable = int(SEARCH_PLACES * reduced / (8 * real_set.pixels)) - CALIBRATION
    count = min(len(tiles), max(LEAST_SEARCHED, affordable))
    searched = np.sort(rng.choice(len(tiles), count, replace=False))
    known = min(len(real_set.tiles), CALIBRATION)
    chosen = np.sort(rng.choice(len(real_set.tiles), known, replace=False))
    origins = [real_set.tiles.origins[i] for i in chosen]
    everywhere = np.ones((count, len(real)), dtype=bool)
    far = far_slices(np.array([tile.slice for tile in origins]), len(real))
    images = np.concatenate([tiles.images[searched], real_set.tiles.images[chosen]])
    matches = find_matches(images, real.image, len(real), np.concatenate([everywhere, far]))
    neighbours = []
    for index, tile in zip(chosen, origins, strict=True):
        image = real.image(tile.slice + 1 if tile.slice + 1 < len(real) else tile.slice - 1)
        window = image[tile.y : tile.y + side, tile.x : tile.x + side]
        if window.shape == (side, side):
            neighbours.append(similarity(real_set.tiles.images[index], window))
    return Novelty(
        tuple(map(int, searched)),
        tuple(matches[:count]),
        tuple(map(int, chosen)),
        tuple(matches[count:]),
        tuple(neighbours),
    )
