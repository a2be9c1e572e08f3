from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from emfast.segmentation.flips import mean_over_flips
from emfast.segmentation.greys import Prepared
from emfast.segmentation.neighbours import Median, check_median
from emfast.segmentation.predicted import Predicted
from emfast.segmentation.streaming import Behind, ahead
from engines.errors import UserError


def predicted(index: int, probability: np.ndarray) -> Predicted:  # type: ignore[type-arg]
    image = np.zeros((2, 3), dtype=np.uint8)
    return Predicted(
        index, image, Prepared(np.zeros((0, 0), np.float32), None, 0, False), probability
    )


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("window", [1, 3, 5, 7])
def test_median_against_numpy(slices: int, window: int) -> None:
    stack = np.random.default_rng(0).random((slices, 2, 4, 5), dtype=np.float32)
    median, half = Median(window, slices), window // 2
    given = [item for i in range(slices) for item in median.push(predicted(i, stack[i]))]
    assert [item.index for item in given] == list(range(slices))
    for item in given:
        part = stack[max(item.index - half, 0) : item.index + half + 1]
        np.testing.assert_array_equal(item.probability, np.median(part, axis=0))


def test_median_gives_nothing_whose_neighbours_are_missing() -> None:
    stack = np.random.default_rng(0).random((12, 1, 4, 5), dtype=np.float32)
    median = Median(3, 12)
    came = [0, 1, 2, 3, 6, 7, 8, 11]
    given = [item.index for i in came for item in median.push(predicted(i, stack[i]))]
    assert given == [0, 1, 2, 7]


def test_windows_have_a_middle() -> None:
    for window in (0, 2, -3):
        with pytest.raises(UserError, match="odd"):
            check_median(window)


@pytest.mark.parametrize("flips", [1, 4, 8])
def test_flips_against_numpy(flips: int) -> None:
    x = np.random.default_rng(0).random((2, 1, 6, 9), dtype=np.float32)

    def predict(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        assert x.flags.c_contiguous
        return np.concatenate([np.cumsum(x, axis=-1), np.roll(x, 1, axis=-2)], axis=1)

    found = mean_over_flips(predict, x, flips)
    expected = []
    for transpose in range(flips // 4) if flips > 1 else [0]:
        for k in range(4 if flips > 1 else 1):
            axes = [axis for bit, axis in ((1, -1), (2, -2)) if k & bit]
            turned = np.swapaxes(x, -1, -2) if transpose else x
            back = np.flip(predict(np.ascontiguousarray(np.flip(turned, axes))), axes)
            expected.append(np.swapaxes(back, -1, -2) if transpose else back)
    assert len(expected) == flips
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5)


def test_reading_ahead_is_bounded_and_in_order() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            drawn.append(i)
            yield i

    coming = ahead(items(), 2)
    assert next(coming) == 0
    time.sleep(0.3)
    assert len(drawn) <= 4  # one given, two waiting, one in hand
    assert list(coming) == list(range(1, 20))


def test_errors_of_the_reader_are_raised_where_it_is_waited_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise UserError("torn")

    coming = ahead(items(), 2)
    assert next(coming) == 1
    with pytest.raises(UserError, match="torn"):
        next(coming)


def test_a_closed_reader_ends_its_thread() -> None:
    before = threading.active_count()
    coming = ahead(iter(range(1000)), 2)
    next(coming)
    coming.close()
    assert threading.active_count() == before


def test_errors_of_the_writer_are_raised() -> None:
    def fail() -> None:
        raise UserError("disk full")

    with pytest.raises(UserError, match="disk full"), Behind(2) as behind:
        behind.submit(fail)


def test_calls_behind_are_in_order_and_bounded() -> None:
    done: list[int] = []
    gate = threading.Event()

    def call(i: int) -> None:
        gate.wait(5)
        done.append(i)

    with Behind(2) as behind:
        for i in range(2):
            behind.submit(call, i)
        threading.Timer(0.1, gate.set).start()
        behind.submit(call, 2)
        assert gate.is_set()
    assert done == [0, 1, 2]
