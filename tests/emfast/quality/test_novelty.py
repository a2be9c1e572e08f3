from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emfast.quality.novelty import (
    INVERSE,
    Match,
    PlaceSearch,
    far_slices,
    find_matches,
    similarity,
)
from emfast.training.batches import flip_turn

RNG = np.random.default_rng(0)


def texture(height: int, width: int, rng: np.random.Generator = RNG) -> np.ndarray:
    """Blobs about 12 pixels wide with noise, as a slice's structure and grain."""
    blobs = gaussian_filter(rng.normal(size=(height, width)), 5)
    greys = 130 + 30 * blobs / blobs.std() + rng.normal(0, 8, (height, width))
    return greys.clip(0, 255).round().astype(np.uint8)


SLICES = [texture(150, 200) for _ in range(5)]


def find(tiles: np.ndarray, allowed: np.ndarray | None = None) -> list[Match]:
    return find_matches(tiles, SLICES.__getitem__, len(SLICES), allowed)


def test_each_symmetry_is_undone_by_its_inverse() -> None:
    image = RNG.integers(0, 256, (5, 5), dtype=np.uint8)
    for symmetry, inverse in enumerate(INVERSE):
        assert np.array_equal(flip_turn(flip_turn(image, symmetry), inverse), image)


# 100 is no multiple of the side in the first pass, 40 is not reduced at all.
@pytest.mark.parametrize("side", [40, 64, 100])
def test_planted_copies_are_found_where_they_came_from(side: int) -> None:
    rng = np.random.default_rng(side)
    tiles, truth = [], []
    for symmetry in range(8):
        z, y, x = int(rng.integers(5)), int(rng.integers(151 - side)), int(rng.integers(201 - side))
        copy = flip_turn(SLICES[z][y : y + side, x : x + side], symmetry)
        # Odd ones in another brightness and contrast, and with noise of their own.
        if symmetry % 2:
            copy = (0.6 * copy + 60 + rng.normal(0, 6, copy.shape)).round().astype(np.uint8)
        tiles.append(copy)
        truth.append((z, y, x, symmetry))
    matches = find(np.stack(tiles))
    assert [(m.slice, m.y, m.x, m.symmetry) for m in matches] == truth
    assert min(m.similarity for m in matches[::2]) > 0.999
    assert min(m.similarity for m in matches) > 0.9
    for tile, match in zip(tiles[::2], matches[::2], strict=True):
        assert np.array_equal(match.window(SLICES[match.slice], side), tile)


def test_what_was_not_copied_is_less_similar() -> None:
    own = np.stack([texture(64, 64, np.random.default_rng(seed)) for seed in range(100, 110)])
    assert max(match.similarity for match in find(own)) < 0.7


def test_similarity_is_the_correlation_after_smoothing() -> None:
    tile = texture(64, 64, np.random.default_rng(1))
    (match,) = find(tile[None])
    place = match.window(SLICES[match.slice], 64)
    smooth = [gaussian_filter(image.astype(float), 0.5).ravel() for image in (tile, place)]
    assert similarity(tile, place) == pytest.approx(np.corrcoef(*smooth)[0, 1], abs=1e-4)
    # Beyond the window's edge the slice goes on, which the smoothing sees.
    assert match.similarity == pytest.approx(similarity(tile, place), abs=0.01)
    assert similarity(tile, tile) == pytest.approx(1)
    assert similarity(tile, 255 - tile) == pytest.approx(-1)


def test_only_allowed_slices_are_searched() -> None:
    tiles = np.stack([SLICES[2][10:74, 20:84], SLICES[3][10:74, 20:84]])
    allowed = np.ones((2, 5), dtype=bool)
    allowed[0, 2] = False
    first, second = find(tiles, allowed)
    assert first.slice != 2 and first.similarity < 0.7
    assert second.slice == 3 and second.similarity > 0.999


def test_images_of_one_grey_level_resemble_nothing() -> None:
    flat = np.full((1, 64, 64), 90, dtype=np.uint8)
    assert find(flat)[0].similarity == 0
    assert similarity(flat[0], flat[0]) == 0
    empty = [np.full((80, 80), 200, dtype=np.uint8), SLICES[0]]
    tile = SLICES[0][5:69, 7:71]
    (match,) = find_matches(tile[None], empty.__getitem__, 2)
    assert (match.slice, match.y, match.x) == (1, 5, 7)


def test_slices_of_different_sizes() -> None:
    slices = [texture(64, 64), texture(90, 70), texture(64, 64)]
    tiles = np.stack([slices[2], slices[1][26:90, 3:67]])
    matches = find_matches(tiles, slices.__getitem__, 3)
    assert [(m.slice, m.y, m.x) for m in matches] == [(2, 0, 0), (1, 26, 3)]


def test_far_slices_are_a_third_of_the_stack_away() -> None:
    far = far_slices(np.array([0, 4, 8]), 9)
    assert [np.flatnonzero(row).tolist() for row in far] == [
        [3, 4, 5, 6, 7, 8],
        [0, 1, 7, 8],
        [0, 1, 2, 3, 4, 5],
    ]
    for count in range(2, 40):
        assert far_slices(np.arange(count), count).any(axis=1).all()
        assert not far_slices(np.arange(count), count).diagonal().any()


def test_a_search_serves_again_and_again() -> None:
    tiles = np.stack([image[10:74, 20:84] for image in SLICES])
    with PlaceSearch(SLICES.__getitem__, len(SLICES), 64) as search:
        parts = [*search.find(tiles[:2]), *search.find(tiles[2:])]
    assert parts == find(tiles)
