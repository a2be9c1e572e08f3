from __future__ import annotations

import numpy as np

from emfast.selection.repair import Repair


def mask(side: int = 40) -> np.ndarray:
    return np.zeros((side, side), dtype=np.uint8)


def test_specks_go_and_objects_stay() -> None:
    drawn = mask()
    drawn[10:20, 10:20] = 1  # 100 pixels
    drawn[25:32, 25:34] = 1  # 63: a speck
    drawn[5, 30] = 1
    done = Repair()(drawn)
    expected = mask()
    expected[10:20, 10:20] = 1
    assert np.array_equal(done.mask, expected)
    assert (done.specks_dropped, done.pixels_dropped) == (2, 64)
    assert (done.holes_filled, done.pixels_filled) == (0, 0)
    assert done.changed


def test_pieces_at_the_border_stay() -> None:
    drawn = mask()
    drawn[0:3, 10:13] = 1
    done = Repair()(drawn)
    assert not done.changed
    assert np.array_equal(done.mask, drawn)


def test_holes_are_filled() -> None:
    drawn = mask()
    drawn[10:30, 10:30] = 1
    drawn[15:17, 15:18] = 0
    # A gap that opens to the background by a corner of two object pixels is a hole: objects touch
    # by corners.
    drawn[10, 20] = drawn[11, 21] = 0
    done = Repair()(drawn)
    assert (done.holes_filled, done.pixels_filled) == (2, 7)
    assert done.mask[10, 20] == 0
    assert done.mask[11, 21] == 1


def test_bays_at_the_border_are_no_holes() -> None:
    drawn = np.ones((40, 40), dtype=np.uint8)
    drawn[0:5, 10:15] = 0
    assert not Repair()(drawn).changed


def test_a_ring_that_is_a_speck_goes_with_its_hole() -> None:
    drawn = mask()
    drawn[10:15, 10:15] = 1
    drawn[12, 12] = 0
    done = Repair()(drawn)
    assert not done.mask.any()
    assert (done.specks_dropped, done.pixels_dropped) == (1, 24)
    assert (done.holes_filled, done.pixels_filled) == (0, 0)


def test_a_small_ring_grows_into_an_object_when_it_is_filled() -> None:
    drawn = mask()
    drawn[10:20, 10:20] = 1
    drawn[11:19, 11:19] = 0  # a ring of 36 pixels around a hole of 64
    done = Repair()(drawn)
    assert done.mask.sum() == 100
    assert (done.specks_dropped, done.holes_filled) == (0, 1)


def test_a_repaired_mask_needs_no_repair() -> None:
    rng = np.random.default_rng(0)
    drawn = (rng.random((64, 64)) < 0.4).astype(np.uint8)
    assert not Repair()(Repair()(drawn).mask).changed
