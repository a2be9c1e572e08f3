from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from emfast.data.stack import Stack, read_stack
from emfast.data.tiles import (
    Tile,
    Window,
    cut_tiles,
    paper_windows,
    reduce_image,
    reduce_mask,
    tile_windows,
)
from engines.errors import UserError


def random_stack(slices: int, height: int, width: int, masks: bool = True) -> Stack:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (slices, height, width), dtype=np.uint8)
    labels = generator.integers(0, 2, images.shape, dtype=np.uint8) if masks else None
    return Stack(images, labels, tuple(f"s{i}" for i in range(slices)), "random")


def test_an_epfl_slice_gives_35_and_6_windows() -> None:
    assert len(tile_windows(768, 1024)) == 35
    windows = paper_windows(768, 1024)
    assert len(windows) == 41
    assert windows[:35] == tile_windows(768, 1024)
    assert windows[35:] == [Window(y, x, 512) for y in (0, 256) for x in (0, 256, 512)]


def test_windows_cover_the_grid_and_stay_inside() -> None:
    windows = tile_windows(70, 100, size=32, stride=20)
    assert {w.y for w in windows} == {0, 20}
    assert {w.x for w in windows} == {0, 20, 40, 60}
    assert len(windows) == 8


@pytest.mark.parametrize(
    ("size", "stride", "message"),
    [
        (65, 10, "65 x 65 pixels do not fit into slices of 80 x 64; the largest possible .* 64"),
        (0, 10, "at least 1"),
        (16, 0, "at least 1"),
    ],
)
def test_impossible_windows_are_refused(size: int, stride: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tile_windows(64, 80, size, stride)


def test_paper_windows_need_large_slices() -> None:
    with pytest.raises(UserError, match="512 x 512 pixels do not fit into slices of 600 x 500"):
        paper_windows(500, 600)


def test_tiles_are_the_windows_pixels_slice_by_slice() -> None:
    stack = random_stack(2, 64, 96)
    tiles = cut_tiles(stack, tile_windows(64, 96, 32, 32), size=32)
    assert len(tiles) == 12
    assert tiles.images.shape == (12, 32, 32) and tiles.images.dtype == np.uint8
    assert tiles.origins[7] == Tile(slice=1, y=0, x=32, size=32)
    assert tiles.masks is not None and stack.masks is not None
    for i, (s, y, x) in enumerate((o.slice, o.y, o.x) for o in tiles.origins):
        assert np.array_equal(tiles.images[i], stack.images[s, y : y + 32, x : x + 32])
        assert np.array_equal(tiles.masks[i], stack.masks[s, y : y + 32, x : x + 32])


def test_half_scale_averages_images_and_keeps_masks_aligned() -> None:
    stack = random_stack(1, 64, 64)
    tiles = cut_tiles(stack, [Window(0, 0, 64)], size=32)
    blocks = stack.images[0].reshape(32, 2, 32, 2).astype(float).mean((1, 3))
    assert np.array_equal(tiles.images[0], np.rint(blocks))
    assert abs(tiles.images[0].mean() - blocks.mean()) < 0.05
    assert tiles.masks is not None and stack.masks is not None
    covered = stack.masks[0].reshape(32, 2, 32, 2).sum((1, 3))
    assert np.array_equal(tiles.masks[0], covered >= 2)


def test_reducing_does_not_shift_a_mask_against_its_image() -> None:
    image = np.zeros((64, 64), dtype=np.uint8)
    image[16:48, 20:40] = 200
    mask = (image > 0).astype(np.uint8)
    assert np.array_equal(reduce_image(image, 32) > 100, reduce_mask(mask, 32) == 1)
    for turned in (np.rot90(mask), mask[::-1], mask[:, ::-1]):
        expected = reduce_mask(mask, 32).sum()
        assert reduce_mask(np.ascontiguousarray(turned), 32).sum() == expected


def test_a_stack_without_masks_gives_tiles_without_masks() -> None:
    tiles = cut_tiles(random_stack(1, 32, 32, masks=False), [Window(0, 0, 16)], size=16)
    assert tiles.masks is None


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([], "no windows"),
        ([Window(0, 20, 16)], "does not lie inside slices of 32 x 32"),
        ([Window(-1, 0, 16)], "does not lie inside"),
        ([Window(0, 0, 8)], "smaller than the tiles, 16"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(windows: list[Window], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut_tiles(random_stack(1, 32, 32), windows, size=16)


@pytest.fixture(scope="module")
def epfl6() -> Stack:
    folder = os.environ.get("EMFAST_EPFL")
    if folder is None:
        pytest.skip("EMFAST_EPFL is not set")
    masks = Path(folder).parent / "epfl6" / "mitochondria"
    if not masks.is_dir():
        pytest.skip(f"{masks} is missing")
    return read_stack(Path(folder), masks)


def test_42_slices_of_epfl6_give_the_papers_1722_tiles(epfl6: Stack) -> None:
    tiles = cut_tiles(epfl6, paper_windows(*epfl6.images.shape[1:]))
    assert len(epfl6) == 42
    assert len(tiles) == 1722
    assert tiles.images.shape == (1722, 256, 256)
    assert sum(o.size == 512 for o in tiles.origins) == 252
    assert tiles.masks is not None
    assert tiles.masks.shape == tiles.images.shape
    assert set(np.unique(tiles.masks)) == {0, 1}
    # Reducing to half scale moves neither the greys nor, by much, the share of mitochondria.
    assert epfl6.masks is not None
    for i, o in enumerate(tiles.origins[35:41], start=35):
        part = np.s_[o.slice, o.y : o.y + 512, o.x : o.x + 512]
        assert tiles.images[i].mean() == pytest.approx(epfl6.images[part].mean(), abs=0.01)
        assert tiles.masks[i].mean() == pytest.approx(epfl6.masks[part].mean(), rel=0.03)
