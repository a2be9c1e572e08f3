from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emfast.quality.grey import grey_distance, grey_histogram, mean_deviation
from emfast.quality.sets import open_labelled, read_real

RNG = np.random.default_rng(0)


def test_histogram_counts_all_or_only_the_objects_pixels() -> None:
    image = np.array([[0, 7, 7], [255, 7, 1]], dtype=np.uint8)
    mask = np.array([[1, 0, 1], [0, 1, 0]], dtype=np.uint8)
    whole, objects = grey_histogram(image), grey_histogram(image, mask)
    assert whole.shape == objects.shape == (256,)
    assert [whole[g] for g in (0, 1, 7, 255)] == [1, 1, 3, 1] and whole.sum() == 6
    assert [objects[g] for g in (0, 1, 7, 255)] == [1, 0, 2, 0] and objects.sum() == 3
    weights = np.array([[1, 2, 3], [4, 5, 6]])
    weighted = grey_histogram(image, weights=weights)
    assert [weighted[g] for g in (0, 1, 7, 255)] == [1, 6, 10, 4] and weighted.sum() == 21
    assert grey_histogram(image, mask, weights)[7] == 8


def test_moments_are_numpys() -> None:
    image = RNG.integers(0, 256, (40, 30), dtype=np.uint8)
    assert mean_deviation(grey_histogram(image)) == pytest.approx((image.mean(), image.std()))
    assert mean_deviation(np.zeros(256, np.int64)) is None


def test_formula_2_by_hand() -> None:
    # Means 100 and 103, deviations 10 and 14: 9 + 16.
    first = np.array([90, 110], dtype=np.uint8)
    second = np.array([89, 117], dtype=np.uint8)
    assert grey_distance(grey_histogram(first), grey_histogram(second)) == pytest.approx(25)
    assert grey_distance(grey_histogram(first), grey_histogram(first)) == 0
    # As many pixels more often change nothing.
    assert grey_distance(3 * grey_histogram(first), grey_histogram(second)) == pytest.approx(25)
    assert grey_distance(grey_histogram(first), np.zeros(256, np.int64)) is None


def test_the_halves_of_the_real_stack(epfl: Path) -> None:
    """Numpy over all pixels of slices 0 to 81 and 82 to 164 gave 29.65, and 1.448 on objects."""
    with open_labelled(epfl) as slices:
        halves = [[slices.pair(i) for i in part] for part in (range(82), range(82, len(slices)))]
    whole = [sum(grey_histogram(image) for image, _ in half) for half in halves]
    objects = [sum(grey_histogram(image, mask) for image, mask in half) for half in halves]
    assert grey_distance(*whole) == pytest.approx(29.6513, abs=1e-4)
    assert grey_distance(*objects) == pytest.approx(1.44799, abs=1e-5)


def test_a_real_set_counts_the_pixels_of_all_tiles(epfl: Path) -> None:
    """Moments that numpy gave for all 256 x 256 tiles of the stack, counted with their pixels."""
    with open_labelled(epfl) as slices:
        real = read_real(slices, 256, 16, seed=0)
    assert mean_deviation(real.greys) == pytest.approx((140.06746, 30.32580), abs=1e-4)
    assert mean_deviation(real.object_greys) == pytest.approx((110.00608, 15.29317), abs=1e-4)
    assert real.object_greys.sum() / real.greys.sum() == pytest.approx(0.0595967, abs=1e-6)
    assert len(real.tiles) == 16 and real.pixels == 165 * 1024 * 768
