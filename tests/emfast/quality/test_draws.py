from __future__ import annotations

import numpy as np
import pytest

from emfast.data.tiles import Tile, Tiles
from emfast.quality.draws import DRAWS, draw_parts
from emfast.quality.sets import split_halves
from engines.errors import UserError


def tiles(slices: int, each: int) -> Tiles:
    origins = tuple(Tile(z, 0, x, 4) for z in range(slices) for x in range(each))
    return Tiles(np.zeros((len(origins), 4, 4), np.uint8), None, origins)


def test_parts_are_equally_large_and_disjoint() -> None:
    real = tiles(32, 5)
    slices = np.array([tile.slice for tile in real.origins])
    draws = draw_parts(real, 300, np.random.default_rng(0))
    assert len(draws) == DRAWS
    for draw in draws:
        parts = (draw.reference, draw.real, draw.synthetic, draw.first_half, draw.second_half)
        assert {len(part) for part in parts} == {80}
        assert all(len(set(part)) == 80 for part in parts)
        # No slice is on both sides.
        assert not set(slices[draw.reference]) & set(slices[draw.real])
        assert split_halves(slices)[draw.first_half].all()
        assert not split_halves(slices)[draw.second_half].any()
    assert len({draw.reference.tobytes() for draw in draws}) > 1
    assert len({draw.synthetic.tobytes() for draw in draws}) > 1


def test_as_many_real_tiles_as_synthetic_images() -> None:
    draws = draw_parts(tiles(32, 5), 12, np.random.default_rng(0))
    assert {len(draw.real) for draw in draws} == {12}
    assert all(draw.synthetic.tolist() == list(range(12)) for draw in draws)


def test_too_few_real_tiles() -> None:
    with pytest.raises(UserError, match="14 tiles of this size; a report needs at least 8"):
        draw_parts(tiles(7, 2), 100, np.random.default_rng(0))
