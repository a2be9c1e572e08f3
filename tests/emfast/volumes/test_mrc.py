"""MRC volumes, written and opened again by mrcfile."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from emfast.volumes import VoxelSize, create_like, open_volume
from engines.errors import UserError
from tests.emfast.volumes.volumes import SHAPE, greys, read_all, values, write_like

mrcfile = pytest.importorskip("mrcfile")


def _file(path: Path, dtype: str = "uint16") -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(greys(dtype))
        mrc.set_volume()
        mrc.voxel_size = (40, 50, 500)
    return path


@pytest.mark.parametrize(
    ("dtype", "mode"), [("int8", 0), ("int16", 1), ("float32", 2), ("uint16", 6), ("float16", 12)]
)
@pytest.mark.parametrize(
    ("written", "stored"), [("uint8", "uint16"), ("float32", "float32"), ("uint32", "float32")]
)
def test_modes_and_voxel_size(
    tmp_path: Path, dtype: str, mode: int, written: str, stored: str
) -> None:
    source = _file(tmp_path / "cells.mrc", dtype)
    assert mrcfile.open(source).header.mode == mode
    np.testing.assert_array_equal(read_all(source), greys(dtype))
    info, path = write_like(source, tmp_path / "out", written)
    assert (info.axes, info.size) == ("ZYX", SHAPE[1:])
    assert info.voxel == VoxelSize(pytest.approx(50), pytest.approx(5), pytest.approx(4))
    assert path == tmp_path / "out" / "masks" / "cells.mrc"
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.data.dtype == stored
        np.testing.assert_array_equal(mrc.data, values(written))
        sizes = (mrc.voxel_size.x, mrc.voxel_size.y, mrc.voxel_size.z)
        assert sizes == pytest.approx((40, 50, 500))
        assert mrc.is_volume()
        assert mrc.header.dmax == values(written).max()
        assert mrc.header.dmean == pytest.approx(values(written).mean(), rel=1e-5)
        assert mrc.header.rms == pytest.approx(values(written).std(), rel=1e-4)


def test_unsigned_bytes_of_older_programs(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.mrc", "int8")
    with open_volume(source) as reader:
        assert "signed, as MRC2014" in reader.info.note
    with mrcfile.open(source, "r+") as mrc:
        mrc.set_data(greys().view(np.int8))
        mrc.header.dmin, mrc.header.dmax = 0, 255
    with open_volume(source) as reader:
        assert reader.info.dtype == np.uint8
        assert "unsigned" in reader.info.note
    np.testing.assert_array_equal(read_all(source), greys())


def test_header_names_the_axes(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.mrc")
    with mrcfile.open(source, "r+") as mrc:
        mrc.header.mapc, mrc.header.mapr, mrc.header.maps = 3, 2, 1
    np.testing.assert_array_equal(read_all(source), greys("uint16").transpose(2, 1, 0))
    with open_volume(source) as reader:
        assert reader.info.axes == "XYZ"
    np.testing.assert_array_equal(read_all(source, axes="ZYX"), greys("uint16"))
    with open_volume(source) as reader, create_like(
        reader.info, reader, tmp_path, name="masks", dtype=np.dtype(np.uint8)
    ) as writer:  # fmt: skip
        writer.write(0, reader.read(0, 30) % 2)
        writer.write(30, reader.read(30, 40) % 2)
    with mrcfile.open(writer.path) as mrc:
        assert (mrc.header.mapc, mrc.header.maps) == (3, 1)
        np.testing.assert_array_equal(mrc.data, greys("uint16") % 2)


def test_single_images_stacks_and_big_endian(tmp_path: Path) -> None:
    mrcfile.write(tmp_path / "image.mrc", greys("int16")[0])
    np.testing.assert_array_equal(read_all(tmp_path / "image.mrc"), greys("int16")[:1])
    info, path = write_like(tmp_path / "image.mrc", tmp_path / "out")
    assert (info.axes, info.voxel) == ("YX", VoxelSize(None, None, None))
    assert mrcfile.open(path).is_single_image()
    with mrcfile.new(tmp_path / "stack.mrcs") as mrc:
        mrc.set_data(greys("float32").astype(">f4"))
        mrc.set_image_stack()
    np.testing.assert_array_equal(read_all(tmp_path / "stack.mrcs"), greys("float32"))
    _, path = write_like(tmp_path / "stack.mrcs", tmp_path / "out")
    assert mrcfile.open(path).is_image_stack()
    with mrcfile.new(tmp_path / "movie.mrc") as mrc:
        mrc.set_data(np.stack([greys("int16")] * 2))
    with pytest.raises(UserError, match="2 time points"):
        open_volume(tmp_path / "movie.mrc")


def test_what_mrc_cannot_hold_is_told(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.mrc")
    with pytest.raises(UserError, match="one channel, but there are 2 classes"):
        write_like(source, tmp_path / "out", "float32", 2)
    with pytest.raises(UserError, match="holds no int64 values"):
        write_like(source, tmp_path / "out", "int64")
    with (
        open_volume(source) as reader,
        pytest.raises(UserError, match="labels up to 16777216"),
        create_like(
            reader.info, reader, tmp_path / "out", name="labels", dtype=np.dtype(np.uint32)
        ) as writer,
    ):
        writer.write(0, values("uint32")[:1] + np.uint32(2**24))
    assert not list((tmp_path / "out" / "labels").iterdir())


def test_damage_is_told_and_trailing_bytes_are_not(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.mrc")
    whole = source.read_bytes()
    for size in (0, 500, 1024, len(whole) // 2, len(whole) - 1):
        source.write_bytes(whole[:size])
        with pytest.raises(UserError, match="a.mrc: cannot be read, truncated or damaged"):
            read_all(source)
    source.write_bytes(whole + bytes(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_all(source), greys("uint16"))
