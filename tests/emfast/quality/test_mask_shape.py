from __future__ import annotations

import numpy as np
import pytest

from emfast.quality.mask_shape import components, mask_statistics


def mask(*rectangles: tuple[int, int, int, int], side: int = 64) -> np.ndarray:
    """Rectangles of 1: top, left, height, width."""
    array = np.zeros((side, side), dtype=np.uint8)
    for top, left, height, width in rectangles:
        array[top : top + height, left : left + width] = 1
    return array


def test_components_by_hand() -> None:
    square, bar, speck = components(mask((20, 20, 10, 10), (40, 0, 4, 40), (60, 60, 3, 3)))
    assert (square.area, square.cut, square.speck) == (100, False, False)
    assert square.eccentricity == pytest.approx(0) and square.solidity == pytest.approx(1)
    assert (bar.area, bar.cut) == (160, True)
    # Second moments of a rectangle grow with its squared sides: (1 - 15 / 1599)^(1/2).
    assert bar.eccentricity == pytest.approx((1 - 15 / 1599) ** 0.5)
    assert (speck.area, speck.cut, speck.speck) == (9, False, True)
    assert speck.eccentricity is None and speck.solidity is None


def test_what_touches_by_a_corner_is_one_object_and_each_border_cuts() -> None:
    assert [c.area for c in components(mask((10, 10, 8, 8), (18, 18, 8, 8)))] == [128]
    borders = [(0, 30, 9, 9), (55, 30, 9, 9), (30, 0, 9, 9), (30, 55, 9, 9), (1, 1, 9, 9)]
    assert [components(mask(b))[0].cut for b in borders] == [True, True, True, True, False]
    assert components(mask()) == ()
    assert components(mask((3, 3, 8, 8)) * np.uint8(255))[0].area == 64


def test_a_speck_is_below_64_pixels() -> None:
    found = components(mask((10, 10, 8, 8), (40, 40, 7, 9)))
    assert [(c.area, c.speck) for c in found] == [(64, False), (63, True)]


def test_solidity_of_a_notched_object() -> None:
    """An L of three 10 x 10 squares; its hull has half of the missing square more."""
    (corner,) = components(mask((10, 10, 20, 10), (20, 20, 10, 10)))
    assert corner.solidity == pytest.approx(300 / 350, abs=0.02)


def test_statistics_by_hand() -> None:
    masks = [
        mask((20, 20, 10, 10), (60, 60, 2, 2)),
        mask((0, 0, 10, 20)),
        mask(),
        mask((30, 30, 10, 30)),
    ]
    values = mask_statistics([components(m) for m in masks], 64 * 64)
    assert values == {
        "area_fraction": pytest.approx(604 / 4 / 4096),
        "empty": 0.25,
        "components": 1.0,
        "specks": 0.25,
        "cut": 0.25,
        "size": 200.0,
        "eccentricity": pytest.approx((0 + (1 - 99 / 399) ** 0.5 + (1 - 99 / 899) ** 0.5) / 3),
        "solidity": pytest.approx(1),
    }


def test_statistics_of_nothing_are_none() -> None:
    values = mask_statistics([(), ()], 100)
    assert values["area_fraction"] == values["components"] == 0 and values["empty"] == 1
    assert all(values[name] is None for name in ("specks", "cut", "size", "eccentricity"))
    specks = mask_statistics([components(mask((5, 5, 2, 2)))], 64 * 64)
    assert specks["specks"] == 1 and specks["size"] is None and specks["solidity"] is None
