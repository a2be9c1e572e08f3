from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from emfast.segmentation.greys import Greys, Statistics, measure, measure_volume, prepare
from emfast.segmentation.preprocessing import normalize
from engines.errors import UserError


def slices(count: int = 3) -> npt.NDArray[np.uint8]:
    """Noise of another brightness and contrast in each slice."""
    rng = np.random.default_rng(0)
    planes = [rng.normal(90 + 20 * i, 12 + 4 * i, (40, 50)) for i in range(count)]
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)


def test_bytes_are_what_the_network_was_trained_on() -> None:
    stack = slices()
    for normalization in ("standardize", "unit"):
        trained = normalize(stack, normalization)[:, 0]  # type: ignore[arg-type]
        for image, expected in zip(stack, trained, strict=True):
            x = prepare(image, normalization, Greys()).x  # type: ignore[arg-type]
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "factor", "offset"),
    [
        (np.uint16, 200, 3000),
        (np.int16, 50, -4000),
        (np.int32, 5_000_000, -200_000_000),
        (np.uint32, 16_000_000, 7),
        (np.int64, 2**40, 0),
        (np.float32, 1e-4, 0.5),
        (np.float64, 1e-12, 3e-11),
        (np.float16, 1, 0),
    ],
)
def test_types_of_the_same_contrast_look_the_same(
    dtype: type[np.generic], factor: float, offset: float
) -> None:
    image = slices(1)[0]
    stored = (image.astype(np.float64) * factor + offset).astype(dtype)
    found = prepare(stored, "standardize", Greys())
    expected = prepare(image, "standardize", Greys())
    np.testing.assert_allclose(found.x, expected.x, atol=2e-3)
    assert found.invalid is None
    assert found.clipped == 0


def test_inverted_slices_are_turned_back() -> None:
    image = slices(1)[0]
    for normalization in ("standardize", "unit"):
        expected = prepare(image, normalization, Greys()).x  # type: ignore[arg-type]
        x = prepare(255 - image, normalization, Greys(invert=True)).x  # type: ignore[arg-type]
        np.testing.assert_allclose(x, expected, atol=1e-5)


def test_what_is_no_number_takes_no_part() -> None:
    image = slices(1)[0].astype(np.float32)
    expected = prepare(image, "standardize", Greys()).x
    holed = image.copy()
    holed[:2, :3], holed[5, 5], holed[5, 6] = np.nan, np.inf, -np.inf
    found = prepare(holed, "standardize", Greys())
    assert found.invalid is not None
    assert np.count_nonzero(found.invalid) == 8
    assert not found.x[found.invalid].any()
    np.testing.assert_allclose(found.x[~found.invalid], expected[~found.invalid], atol=0.02)
    valid = found.x[~found.invalid].astype(np.float64)
    assert abs(valid.mean()) < 1e-5
    assert abs(valid.std() - 1) < 1e-5


@pytest.mark.parametrize("value", [0.0, 1e-3, 77.0, 1e30])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_empty_slices_stay_empty(dtype: type[np.generic], value: float) -> None:
    if np.dtype(dtype).kind != "f":
        value = min(value, 200)
    image = np.full((20, 30), value, dtype=dtype)
    found = prepare(image, "standardize", Greys())
    np.testing.assert_allclose(found.x, 0, atol=1e-3)
    volume = Statistics(120.0, 30.0)
    for greys in (Greys(), Greys(invert=True), Greys(limits=(-5, 5)), Greys(statistics=volume)):
        assert prepare(image, "standardize", greys).blank


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32])
def test_the_least_contrast_is_not_blank(dtype: type[np.generic]) -> None:
    image = np.full((20, 30), 100, dtype=dtype)
    image[3, 4] = 101
    for greys in (Greys(), Greys(statistics=Statistics(120.0, 60.0))):
        assert not prepare(image, "standardize", greys).blank
    # All that differs is clipped.
    assert prepare(image, "standardize", Greys(limits=(0, 90))).blank


def test_one_grey_beside_what_is_no_number_is_blank() -> None:
    image = np.full((20, 30), 7, dtype=np.float32)
    image[:5] = np.nan
    assert prepare(image, "standardize", Greys()).blank
    probability = np.ones((2, 20, 30), dtype=np.float32)
    prepare(image, "standardize", Greys()).erase(probability)
    assert not probability.any()


def test_a_slice_without_any_number() -> None:
    found = prepare(np.full((4, 5), np.nan, dtype=np.float32), "standardize", Greys())
    assert found.invalid is not None and found.invalid.all()
    assert not found.x.any()


def test_hot_pixels_do_not_flatten_the_rest() -> None:
    image = np.tile(slices(1)[0].astype(np.uint16) * 10, (5, 4))
    expected = prepare(image, "standardize", Greys()).x
    hot = image.copy()
    hot[3, 4], hot[20, 7], hot[30, 30] = 65535, 65535, 0
    found = prepare(hot, "standardize", Greys())
    assert found.clipped == 3
    same = hot == image
    np.testing.assert_allclose(found.x[same], expected[same], atol=0.05)
    assert found.x.max() < 10


def test_a_slice_of_one_grey_with_a_few_others_keeps_them() -> None:
    image = np.full((100, 100), 500, dtype=np.uint16)
    image[:5, :5] = 900
    found = prepare(image, "standardize", Greys())
    assert found.clipped == 0
    assert found.x[0, 0] > 10


def test_given_limits_clip() -> None:
    image = np.array([[0, 100, 200, 60000]], dtype=np.uint16)
    found = prepare(image, "standardize", Greys(limits=(0, 200)))
    assert found.clipped == 1
    assert found.x[0, 2] == found.x[0, 3]
    unit = prepare(image, "unit", Greys(limits=(100, 200)))
    np.testing.assert_allclose(unit.x, [[0, 0, 1, 1]])


def test_what_is_white_is_asked_for() -> None:
    with pytest.raises(UserError, match="say it with --range"):
        prepare(slices(1)[0].astype(np.uint16), "unit", Greys())
    with pytest.raises(UserError, match="the smaller one first"):
        Greys(limits=(5, 5))
    with pytest.raises(UserError, match="two numbers"):
        Greys(limits=(0, math.nan))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_statistics_of_a_volume_are_those_of_all_its_voxels(dtype: type[np.generic]) -> None:
    stack = slices(5).astype(dtype)
    if dtype == np.float32:
        stack[2] = np.nan
    found = measure_volume(lambda index: stack[index], len(stack))
    assert found.mean == pytest.approx(float(np.nanmean(stack.astype(float))))
    assert found.deviation == pytest.approx(float(np.nanstd(stack.astype(float))))
    x = np.stack([prepare(i, "standardize", Greys(statistics=found)).x for i in stack])
    valid = x[np.isfinite(stack.astype(float))].astype(float)
    assert abs(valid.mean()) < 1e-4
    assert abs(valid.std() - 1) < 1e-4
    # Slices keep their differences in brightness.
    assert x[4].mean() - x[0].mean() > 1


def test_measure_of_one_slice() -> None:
    image = slices(1)[0]
    found = measure(image)
    assert found == Statistics(image.mean(), image.std(), -math.inf, math.inf)
