from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emfast.data.pairs import read_pair
from emfast.data.stack import Stack, read_stack
from emfast.data.tiles import Window, cut_tiles, tile_windows
from emfast.data.write import atomic_folder, write_tiles
from engines.errors import UserError


@pytest.fixture
def stack() -> Stack:
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 64), dtype=np.uint8)
    return Stack(images, (images > 128).astype(np.uint8), ("a", "b"), "random")


def test_tiles_read_back_as_a_stack(stack: Stack, tmp_path: Path) -> None:
    windows = tile_windows(48, 64, 32, 16)
    out = tmp_path / "made" / "tiles"
    assert write_tiles(stack, windows, out, size=32) == 12
    tiles = cut_tiles(stack, windows, 32)
    again = read_stack(out)
    assert again.names[1] == "a_y0000_x0016_s32"
    assert np.array_equal(again.images, tiles.images)
    assert tiles.masks is not None and np.array_equal(again.labels(), tiles.masks)
    with Image.open(out / "masks" / "a_y0000_x0016_s32.png") as mask:
        assert set(np.unique(np.asarray(mask))) == {0, 255}
    assert [p.name for p in out.parent.iterdir()] == ["tiles"]


def test_pairs_read_back(stack: Stack, tmp_path: Path) -> None:
    write_tiles(stack, [Window(0, 0, 32)], tmp_path / "out", size=32, rgb=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["pairs"]
    image, mask = read_pair(tmp_path / "out" / "pairs" / "b_y0000_x0000_s32.png")
    assert np.array_equal(image, stack.images[1, :32, :32])
    assert np.array_equal(mask, stack.labels()[1, :32, :32])


def test_without_masks_only_images_are_written(stack: Stack, tmp_path: Path) -> None:
    bare = Stack(stack.images, None, stack.names, "bare")
    write_tiles(bare, [Window(0, 0, 32)], tmp_path / "out", size=32)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["images"]
    with pytest.raises(UserError, match="bare: no masks found"):
        write_tiles(bare, [Window(0, 0, 32)], tmp_path / "rgb", size=32, rgb=True)
    assert not (tmp_path / "rgb").exists()


def test_a_folder_with_files_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with atomic_folder(out) as folder:
        (folder / "a").write_text("a")
        assert not (out / "a").exists()
    assert (out / "a").read_text() == "a"
    with pytest.raises(UserError, match="out: exists and is not empty"), atomic_folder(out):
        pass
    assert (out / "a").read_text() == "a"
    with pytest.raises(UserError, match="exists"), atomic_folder(out / "a"):
        pass


def test_nothing_is_left_when_writing_fails(stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not lie inside"):
        write_tiles(stack, [Window(0, 0, 32), Window(30, 0, 32)], tmp_path / "out", size=32)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written"),
        atomic_folder(tmp_path / "file" / "x"),
    ):
        pass
