from __future__ import annotations

import numpy as np
import pytest

from emfast.segmentation.tiling import HALO, least_tile, pad, ramps, spans


@pytest.mark.parametrize("multiple", [1, 16, 48])
@pytest.mark.parametrize("extra", [0, 5, 300])
def test_kept_parts_cover_the_axis_and_keep_their_distance(multiple: int, extra: int) -> None:
    tile = least_tile(multiple) + extra
    for count in (1, 5, 30, 63, 64, 65, 127, 128, 200, 377):
        length = count * multiple
        cover = spans(length, tile, multiple)
        assert np.concatenate([np.arange(s.keep_start, s.keep_stop) for s in cover]).tolist() == (
            list(range(length))
        )
        assert len({s.stop - s.start for s in cover}) == 1
        for s in cover:
            assert 0 <= s.start < s.stop <= length
            assert s.stop - s.start <= tile
            assert s.start % multiple == 0
            assert s.stop % multiple == 0
            assert s.start == 0 or s.keep_start - s.start >= HALO
            assert s.stop == length or s.stop - s.keep_stop >= HALO


def test_what_fits_is_one_tile() -> None:
    assert len(spans(1024, 1024, 16)) == 1
    assert len(spans(1040, 1024, 16)) == 2


@pytest.mark.parametrize("halo", [1, 7, 32, 100])
@pytest.mark.parametrize("length", [320, 336, 640, 1600])
def test_ramps_add_up_to_one_and_vanish_at_cut_edges(halo: int, length: int) -> None:
    cover = spans(length, least_tile(16, halo) + 48, 16, halo)
    total = np.zeros(length)
    for span, weight in zip(cover, ramps(cover, halo), strict=True):
        total[span.seen] += weight
        assert weight.min() >= 0
        if span.start > 0:
            assert weight[0] <= 1 / (2 * halo)
    assert len(cover) > 1
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "padded"), [((7, 5), (16, 16)), ((1, 1), (16, 16)), ((32, 17), (32, 32))]
)
def test_padding_mirrors_behind_the_end(size: tuple[int, int], padded: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random((2, 1, *size), dtype=np.float32)
    result = pad(x, 16)
    assert result.shape == (2, 1, *padded)
    np.testing.assert_array_equal(result[..., : size[0], : size[1]], x)
    if padded[1] > size[1] > 1:
        np.testing.assert_array_equal(result[..., : size[0], size[1]], x[..., -2])


def test_what_is_divisible_is_not_padded() -> None:
    x = np.zeros((1, 1, 32, 48), dtype=np.float32)
    assert pad(x, 16) is x
