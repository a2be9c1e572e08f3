"""Folders of image files and single images, written by Pillow and tifffile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from emfast.volumes import VoxelSize, create_like, open_volume
from engines.errors import UserError
from tests.emfast.volumes.volumes import greys, read_all, values, write_like


def _folder(path: Path, suffix: str, dtype: str = "uint8") -> Path:
    path.mkdir(parents=True)
    for i, grey in enumerate(greys(dtype)):
        Image.fromarray(grey).save(path / f"s{i:02d}{suffix}")
    return path


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".png", "uint8"),
        (".png", "uint16"),
        (".bmp", "uint8"),
        (".tif", "uint8"),
        (".tiff", "uint16"),
        (".tif", "float32"),
    ],
)
def test_a_folder_is_read_and_written_file_by_file(tmp_path: Path, suffix: str, dtype: str) -> None:
    folder = _folder(tmp_path / "in", suffix, dtype)
    np.testing.assert_array_equal(read_all(folder), greys(dtype))
    info, path = write_like(folder, tmp_path / "out")
    assert (info.slices, info.size, info.axes) == (7, (24, 40), "ZYX")
    assert path == tmp_path / "out" / "masks"
    written = suffix if suffix.startswith(".tif") else ".png"
    assert sorted(f.name for f in path.iterdir()) == [f"s{i:02d}{written}" for i in range(7)]
    for i, mask in enumerate(values()):
        np.testing.assert_array_equal(np.asarray(Image.open(path / f"s{i:02d}{written}")), mask)


def test_jpeg_is_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", ".jpg")
    expected = [np.asarray(Image.open(f)) for f in sorted(folder.iterdir())]
    np.testing.assert_array_equal(read_all(folder), np.stack(expected))


def test_a_single_image_stays_one(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "b.tif"):
        Image.fromarray(greys()[0]).save(tmp_path / name)
        np.testing.assert_array_equal(read_all(tmp_path / name), greys()[:1])
        info, path = write_like(tmp_path / name, tmp_path / "out")
        assert info.axes == "YX"
        assert path.name == {"a.bmp": "a.png"}.get(name, name)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), values()[0])


def test_what_png_cannot_hold_becomes_tiff(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", ".png")
    for out, dtype, classes in (("p", "float32", 0), ("c", "float32", 2), ("l", "uint32", 0)):
        _, path = write_like(folder, tmp_path / out, dtype, classes)
        stored = [tifffile.imread(f) for f in sorted(path.glob("*.tif"))]
        np.testing.assert_array_equal(np.stack(stored), values(dtype, classes))


def test_sizes_may_differ_but_types_may_not(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", ".png")
    Image.fromarray(greys()[0, :9]).save(folder / "s03.png")
    Image.fromarray(greys("uint16")[0]).save(folder / "s04.png")
    with open_volume(folder) as reader:
        assert reader.info.size is None
        assert reader.read(3, 4).shape == (1, 9, 40)
        with pytest.raises(UserError, match="s04.png: holds uint16 values, but s00.png uint8"):
            reader.read(4, 5)


def test_the_pixel_size_of_tiffs_survives(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tifffile.imwrite(
        tmp_path / "in" / "a.tif", greys()[0], resolution=(2.5e6, 2e6), resolutionunit="CENTIMETER"
    )
    info, path = write_like(tmp_path / "in", tmp_path / "out")
    assert info.voxel == VoxelSize(None, pytest.approx(5), pytest.approx(4))
    with tifffile.TiffFile(path / "a.tif") as tiff:
        assert tiff.pages.first.resolution == pytest.approx((2.5e6, 2e6))
        assert tiff.pages.first.resolutionunit == tifffile.RESUNIT.CENTIMETER


def test_a_run_goes_on_where_another_stopped(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", ".png")
    with open_volume(folder) as reader:
        like = {"name": "masks", "dtype": np.dtype(np.uint8)}
        with (
            pytest.raises(RuntimeError),
            create_like(reader.info, reader, tmp_path / "out", **like) as writer,
        ):
            assert writer.resumable
            writer.write(0, values()[:3])
            raise RuntimeError
        afresh = create_like(reader.info, reader, tmp_path / "out", **like)
        assert not afresh.written(0, 1)
        with create_like(reader.info, reader, tmp_path / "out", **like, resume=True) as writer:
            assert [writer.written(i, i + 1) for i in range(4)] == [True, True, True, False]
            writer.write(3, values()[3:])
            assert writer.written(0, 7)
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "masks"), values())


def test_damage_and_colours_are_told(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", ".png")
    (folder / "s05.png").write_bytes((folder / "s05.png").read_bytes()[:80])
    Image.fromarray(np.dstack([greys()[0], greys()[1], greys()[2]])).save(folder / "s06.png")
    with open_volume(folder) as reader:
        with pytest.raises(UserError, match="s05.png: cannot be read, truncated"):
            reader.read(5, 6)
        with pytest.raises(UserError, match="s06.png: is a colour image"):
            reader.read(6, 7)
    tifffile.imwrite(folder / "s00.tif", greys())
    with pytest.raises(UserError, match="several files of one name"):
        open_volume(folder)
    (folder / "s00.png").unlink()
    with pytest.raises(UserError, match="s00.tif: holds 7 pages"):
        open_volume(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        open_volume(tmp_path / "empty")
    with pytest.raises(UserError, match="have the axes ZYX, not XYZ"):
        open_volume(folder, axes="XYZ")
