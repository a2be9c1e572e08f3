from __future__ import annotations

import numpy as np
import pytest

from emfast.segmentation.decisions import decide
from emfast.segmentation.preprocessing import SegmenterSpec
from emfast.segmentation.resampling import factors, grown, resample
from emfast.volumes import VolumeInfo, VoxelSize
from engines.errors import UserError


def info(y: float | None = None, x: float | None = None, dtype: str = "uint8") -> VolumeInfo:
    voxel = VoxelSize(None, y, x)
    return VolumeInfo("v.tif", "tiff", 3, (20, 30), np.dtype(dtype), "ZYX", voxel)


def spec(pixel_size: float | None) -> SegmenterSpec:
    return SegmenterSpec(1, ("mitochondria",), "standardize", 0.5, pixel_size=pixel_size)


def test_only_what_differs_is_resampled() -> None:
    assert factors((5.0, 5.2), 5.0) is None
    assert factors((8.0, 8.0), 5.0) == (1.6, 1.6)
    assert factors((5.0, 10.0), 5.0) == (1.0, 2.0)
    assert factors(None, 5.0) is None
    assert factors((8.0, 8.0), None) is None
    assert grown((100, 3), (1.6, 0.1)) == (160, 1)


@pytest.mark.parametrize("size", [0.0, -5.0, float("nan"), 0.5, 400.0])
def test_sizes_that_cannot_be(size: float) -> None:
    with pytest.raises(UserError, match="nm"):
        factors((size, size), 5.0)


def test_there_and_back() -> None:
    y, x = np.mgrid[:60, :80]
    planes = np.sin(y / 9)[None, None] * np.cos(x / 7).astype(np.float32)
    large = resample(planes.astype(np.float32), (96, 128), smooth=True)
    assert large.shape == (1, 1, 96, 128)
    back = resample(large, (60, 80), smooth=False)
    np.testing.assert_allclose(back[..., 3:-3, 3:-3], planes[..., 3:-3, 3:-3], atol=0.02)


def test_probabilities_stay_probabilities() -> None:
    planes = (np.random.default_rng(0).random((2, 1, 31, 17)) > 0.5).astype(np.float32)
    for size in ((50, 28), (9, 5), (1, 1)):
        result = resample(planes, size, smooth=False)
        assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize(
    ("y", "given", "trained", "by", "words"),
    [
        (None, None, None, None, "not known, neither the volume's nor the model's"),
        (None, None, 5.0, None, "taken as the model's 5 nm"),
        (8.0, None, None, None, "the model does not say its own: not resampled"),
        (8.0, None, 5.0, (1.6, 1.6), "8 nm, as the file says; resampled to the model's 5 nm"),
        (8.0, 5.1, 5.0, None, "5.1 nm, as given; the model's is 5 nm: not resampled"),
        (None, 10.0, 5.0, (2.0, 2.0), "10 nm, as given; resampled"),
    ],
)
def test_pixel_sizes_are_told(
    y: float | None,
    given: float | None,
    trained: float | None,
    by: tuple[float, float] | None,
    words: str,
) -> None:
    decisions = decide(info(y, y), spec(trained), pixel_size=given)
    assert decisions.by == by
    assert words in decisions.lines[2]


def test_a_pixel_size_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match="leave --pixel-size out"):
        decide(info(), spec(None), pixel_size=8.0)


def test_greys_are_told() -> None:
    lines = decide(info(dtype="uint16"), spec(None), invert=True, limits=(10, 4000)).lines
    assert lines[0] == "volume: 3 slices of 30 x 20 pixels, uint16, axes ZYX"
    assert lines[1].endswith("clipped to 10 to 4000, then inverted")
