from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from emfast.quality.sets import (
    BLOCKS,
    open_labelled,
    read_even,
    read_real,
    split_halves,
    split_interleaved,
)
from engines.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 40, 60), dtype=np.uint8)
MASKS = (RNG.random((6, 40, 60)) < 0.2).astype(np.uint8)


def write_set(folder: Path, images: np.ndarray, masks: np.ndarray) -> Path:
    for name, arrays in (("images", images), ("masks", masks * np.uint8(255))):
        (folder / name).mkdir(parents=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(folder / name / f"{i:04d}.png")
    return folder


def test_folders_are_matched_by_name_and_tiffs_in_order(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", IMAGES, MASKS)
    Image.fromarray(MASKS[0]).save(folder / "masks/unused.png")
    epfl = tmp_path / "epfl"
    epfl.mkdir()
    tifffile.imwrite(epfl / "training.tif", IMAGES, photometric="minisblack")
    tifffile.imwrite(epfl / "training_groundtruth.tif", MASKS * 255, photometric="minisblack")
    for source in (folder, epfl):
        with open_labelled(source) as slices:
            assert len(slices) == 6
            image, mask = slices.pair(4)
        assert np.array_equal(image, IMAGES[4]) and np.array_equal(mask, MASKS[4])
    assert slices.names[4] == "training0004"


def test_sets_that_cannot_be_read(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.fromarray(IMAGES[0]).save(bare / "a.png")
    short = write_set(tmp_path / "short", IMAGES, MASKS)
    (short / "masks/0003.png").unlink()
    for source, message in (
        (tmp_path / "nowhere", "no such folder"),
        (bare, "has no masks; give a folder with images/ and masks/"),
        (short, "no mask for 0003; 1 of 6 images have none"),
    ):
        with pytest.raises(UserError, match=message), open_labelled(source):
            pass
    sizes = write_set(tmp_path / "sizes", IMAGES, MASKS)
    Image.fromarray(MASKS[0, :20]).save(sizes / "masks/0001.png")
    with open_labelled(sizes) as slices, pytest.raises(UserError, match="60 x 40 .* 60 x 20"):
        slices.pair(1)


def test_synthetic_images_are_read_evenly(tmp_path: Path) -> None:
    square = IMAGES[:, :, :40], MASKS[:, :, :40]
    with open_labelled(write_set(tmp_path / "set", *square)) as slices:
        every, some = read_even(slices, 100), read_even(slices, 3)
    assert np.array_equal(every.images, square[0])
    assert [tile.slice for tile in some.origins] == [0, 2, 4]
    assert np.array_equal(some.stack().labels(), square[1][::2])
    with (
        open_labelled(write_set(tmp_path / "wide", IMAGES, MASKS)) as slices,
        pytest.raises(UserError, match=r"60 x 40 pixels.*emfast data tiles"),
    ):
        read_even(slices, 100)


def test_real_tiles_come_from_every_slice(tmp_path: Path) -> None:
    with open_labelled(write_set(tmp_path / "set", IMAGES, MASKS)) as slices:
        real = read_real(slices, 20, 24, seed=0)
        again = read_real(slices, 20, 24, seed=1)
        few = read_real(slices, 20, 3, seed=0)
        inside = read_real(slices, 20, 24, seed=0, border=False)
        with pytest.raises(UserError, match="do not fit into slices"):
            read_real(slices, 64, 24, seed=0)
    # Beyond the border, by up to half a tile and a quarter of the way, and moved back inside.
    rows, columns = np.clip(range(-5, 26), 0, 20), np.clip(range(-10, 51), 0, 40)
    every = [np.s_[:, y : y + 20, x : x + 20] for y in rows for x in columns]
    counts = [np.bincount(IMAGES[window].ravel(), minlength=256) for window in every]
    assert np.array_equal(real.greys, np.sum(counts, axis=0))
    counts = [np.bincount(IMAGES[w][MASKS[w] > 0], minlength=256) for w in every]
    assert np.array_equal(real.object_greys, np.sum(counts, axis=0))
    assert real.pixels == IMAGES.size
    alike = [np.s_[:, y : y + 20, x : x + 20] for y in range(21) for x in range(41)]
    counts = [np.bincount(IMAGES[w].ravel(), minlength=256) for w in alike]
    assert np.array_equal(inside.greys, np.sum(counts, axis=0))
    assert [tile.slice for tile in real.tiles.origins] == [z for z in range(6) for _ in range(4)]
    for tile, image, mask in zip(
        real.tiles.origins, real.tiles.images, real.tiles.stack().labels(), strict=True
    ):
        window = np.s_[tile.slice, tile.y : tile.y + 20, tile.x : tile.x + 20]
        assert np.array_equal(image, IMAGES[window]) and np.array_equal(mask, MASKS[window])
    assert real.tiles.origins != again.tiles.origins
    assert len({(t.slice, t.y, t.x) for t in real.tiles.origins}) == 24
    assert [tile.slice for tile in few.tiles.origins] == [0, 2, 4]


def test_one_real_image_is_not_enough(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", IMAGES[:1], MASKS[:1])
    with open_labelled(folder) as slices, pytest.raises(UserError, match="at least two"):
        read_real(slices, 20, 24, seed=0)


def test_interleaved_parts_are_disjoint_blocks_of_the_same_depths() -> None:
    slices = np.repeat(np.arange(160), 3)
    parts = [split_interleaved(slices, np.random.default_rng(seed)) for seed in range(20)]
    for part in parts:
        assert part.sum() == 240
        # Whole slices, in blocks of 10, and one of every two neighbouring blocks.
        blocks = part.reshape(BLOCKS, 30)
        assert (blocks.all(axis=1) | ~blocks.any(axis=1)).all()
        assert (blocks.any(axis=1).reshape(-1, 2).sum(axis=1) == 1).all()
        assert abs(slices[part].mean() - slices[~part].mean()) <= 10
    assert len({part.tobytes() for part in parts}) > 10
    for count in (2, 3, 5):
        few = split_interleaved(np.repeat(np.arange(count), 4), np.random.default_rng(0))
        assert 0 < few.sum() < 4 * count


def test_halves() -> None:
    assert split_halves(np.array([0, 0, 3, 7, 8, 8])).tolist() == [True, True, True, *[False] * 3]
