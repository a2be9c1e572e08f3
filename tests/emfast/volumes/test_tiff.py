"""TIFF stacks, written and opened again by tifffile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emfast.volumes import VoxelSize, create_like, open_volume, tiff_writer
from engines.errors import UserError
from tests.emfast.volumes.volumes import SHAPE, greys, read_all, values, write_like

OME = {"axes": "ZYX", "PhysicalSizeX": 0.004, "PhysicalSizeY": 0.005, "PhysicalSizeZ": 0.05}
IMAGEJ = {"axes": "ZYX", "spacing": 50.0, "unit": "nm"}
NM = {"resolution": (1 / 4, 1 / 5)}
UNKNOWN = VoxelSize(None, None, None)
LAYOUTS: dict[str, dict[str, Any]] = {
    "pages": {"metadata": None},
    "tifffile's own": {},
    "one page for all": {"truncate": True},
    "strips": {"metadata": None, "rowsperstrip": 5},
    "tiles": {"metadata": None, "tile": (16, 32)},
    "zlib": {"metadata": None, "compression": "zlib"},
    "lzw": {"metadata": None, "compression": "lzw", "predictor": True},
    "zstd": {"compression": "zstd", "tile": (16, 16)},
    "packbits": {"metadata": None, "compression": "packbits"},
    "bigtiff": {"metadata": None, "bigtiff": True},
    "big-endian": {"metadata": None, "byteorder": ">"},
    "big-endian one page": {"truncate": True, "byteorder": ">"},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "imagej one page": {"imagej": True, "truncate": True, "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "ome tiles": {"ome": True, "metadata": {"axes": "ZYX"}, "tile": (16, 16), "byteorder": ">"},
    "ome zlib": {"ome": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"},
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_are_those_that_tifffile_wrote(tmp_path: Path, layout: str, dtype: str) -> None:
    path = tmp_path / "cells.tif"
    if layout == "lzw" and dtype == "float32":
        pytest.skip("a predictor of integers")
    tifffile.imwrite(path, greys(dtype), photometric="minisblack", **LAYOUTS[layout])
    with open_volume(path) as reader:
        assert reader.info.axes == "ZYX"
        assert reader.info.size == SHAPE[1:]
    np.testing.assert_array_equal(read_all(path), greys(dtype))


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "float64"])
def test_other_number_types_are_read_as_they_are(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "cells.tif", greys(dtype), photometric="minisblack")
    np.testing.assert_array_equal(read_all(tmp_path / "cells.tif"), greys(dtype))


def test_not_a_number_passes_through(tmp_path: Path) -> None:
    stack = greys("float32")
    stack[2, 3, 4] = np.nan
    tifffile.imwrite(tmp_path / "cells.tif", stack, photometric="minisblack")
    np.testing.assert_array_equal(read_all(tmp_path / "cells.tif"), stack)


def test_white_is_the_largest_value(tmp_path: Path) -> None:
    for name, options in (("pages", {"metadata": None}), ("one", {"truncate": True}), ("own", {})):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, 255 - greys(), photometric="miniswhite", **options)
        np.testing.assert_array_equal(read_all(path), greys())


def test_bits_are_read_as_0_and_255(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", greys() > 99, photometric="minisblack", metadata=None)
    expected = (greys() > 99) * np.uint8(255)
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif"), expected)


def test_pages_may_be_compressed_in_different_ways(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for i, page in enumerate(greys()):
            compression = "zlib" if i % 2 else None
            tiff.write(page, photometric="minisblack", compression=compression, metadata=None)
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif"), greys())


def test_of_a_pyramid_the_full_resolution_is_read(tmp_path: Path) -> None:
    stack = greys()
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        tiff.write(stack, subifds=2, metadata={"axes": "ZYX"}, photometric="minisblack")
        tiff.write(stack[:, ::2, ::2], subfiletype=1, photometric="minisblack")
        tiff.write(stack[:, ::4, ::4], subfiletype=1, photometric="minisblack")
    np.testing.assert_array_equal(read_all(tmp_path / "a.ome.tif"), stack)
    with open_volume(tmp_path / "a.ome.tif") as reader:
        assert reader.info.note == "full resolution of 3 (7 x 24 x 40)"
    _, path = write_like(tmp_path / "a.ome.tif", tmp_path / "out")
    np.testing.assert_array_equal(tifffile.imread(path), values())


def test_a_hyperstack_of_one_channel_and_time_is_a_volume(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", greys()[None, :, None], imagej=True, metadata={"axes": "TZCYX"}
    )
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif"), greys())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ome": True, "metadata": OME}, VoxelSize(50, 5, 4)),
        (
            {"ome": True, "metadata": {**OME, "PhysicalSizeZUnit": "nm", "PhysicalSizeZ": 30.0}},
            VoxelSize(30, 5, 4),
        ),
        ({"imagej": True, "metadata": IMAGEJ, **NM}, VoxelSize(50, 5, 4)),
        (
            {"imagej": True, "metadata": {**IMAGEJ, "unit": "\\u00B5m"}, "resolution": (250, 200)},
            VoxelSize(50_000, 5, 4),
        ),
        ({"imagej": True, "metadata": {"axes": "ZYX", "unit": "pixel"}, **NM}, UNKNOWN),
        (
            {"imagej": True, "metadata": {"axes": "ZYX", "unit": "inch"}, "resolution": (72, 72)},
            UNKNOWN,
        ),
        ({"resolution": (2.5e6, 2e6), "resolutionunit": "CENTIMETER"}, VoxelSize(None, 5, 4)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_voxel_size_survives(tmp_path: Path, options: dict[str, Any], expected: VoxelSize) -> None:
    tifffile.imwrite(tmp_path / "a.tif", greys(), photometric="minisblack", **options)
    info, path = write_like(tmp_path / "a.tif", tmp_path / "out")
    for voxel in (info.voxel, _voxel(path)):
        for axis in "zyx":
            size = getattr(expected, axis)
            assert getattr(voxel, axis) == (None if size is None else pytest.approx(size, 1e-6))


def _voxel(path: Path) -> VoxelSize:
    with open_volume(path) as reader:
        return reader.info.voxel


@pytest.mark.parametrize(("dtype", "classes"), [("uint8", 0), ("float32", 0), ("float32", 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_is_of_the_same_kind(tmp_path: Path, layout: str, dtype: str, classes: int) -> None:
    source = tmp_path / "cells.tif"
    tifffile.imwrite(source, greys(), photometric="minisblack", **LAYOUTS[layout])
    _, path = write_like(source, tmp_path / "out", dtype, classes)
    assert path == tmp_path / "out" / "masks" / "cells.tif"
    with tifffile.TiffFile(source) as given, tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        np.testing.assert_array_equal(series.asarray(), values(dtype, classes))
        assert len(tiff.series) == 1
        if classes and not given.is_imagej:
            assert tiff.is_ome
        else:
            assert (tiff.is_ome, tiff.is_imagej) == (given.is_ome, given.is_imagej)
        if tiff.is_ome or tiff.is_imagej:
            assert series.axes == ("ZCYX" if classes else "ZYX")
        if not tiff.is_imagej:
            assert tiff.pages.first.is_tiled == given.pages.first.is_tiled


def test_ome_xml_is_that_of_the_schema(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", greys(), metadata=OME, photometric="minisblack")
    _, path = write_like(tmp_path / "a.ome.tif", tmp_path / "out")
    with tifffile.TiffFile(path) as tiff:
        pixels = tifffile.xml2dict(tiff.ome_metadata or "")["OME"]["Image"]["Pixels"]
    assert (pixels["SizeZ"], pixels["SizeC"], pixels["SizeT"]) == (7, 1, 1)
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (4.0, "nm")
    assert (pixels["PhysicalSizeY"], pixels["PhysicalSizeZ"]) == (5.0, 50.0)


def test_imagej_reads_what_it_would_have_written(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", greys(), imagej=True, metadata=IMAGEJ, **NM)
    _, path = write_like(tmp_path / "a.tif", tmp_path / "out")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.imagej_metadata is not None
        # ImageJ finds the slices behind the first one, by their number.
        assert tiff.imagej_metadata["images"] == tiff.imagej_metadata["slices"] == 7
        assert (tiff.imagej_metadata["unit"], tiff.imagej_metadata["spacing"]) == ("nm", 50)
        assert tiff.pages.first.resolution == pytest.approx((1 / 4, 1 / 5))
        assert tiff.series[0].dataoffset is not None


def test_labels_that_imagej_cannot_hold_become_ome(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", greys(), imagej=True, metadata=IMAGEJ, **NM)
    _, path = write_like(tmp_path / "a.tif", tmp_path / "out", "uint32")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == "ZYX"
        assert tiff.series[0].dtype == np.uint32
    assert _voxel(path) == VoxelSize(50, 5, 4)


@pytest.mark.parametrize("imagej", [False, True])
def test_layout_beyond_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagej: bool) -> None:
    monkeypatch.setattr(tiff_writer, "HEADROOM", 2**32)
    tifffile.imwrite(
        tmp_path / "a.tif", greys(), imagej=imagej, photometric="minisblack",
        metadata=IMAGEJ if imagej else None, **NM,
    )  # fmt: skip
    _, path = write_like(tmp_path / "a.tif", tmp_path / "out", classes=3)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff != imagej
        assert len(tiff.pages) == (1 if imagej else 21)
        np.testing.assert_array_equal(tiff.series[0].asarray(), values(classes=3))
    if imagej:
        assert _voxel_of_channels(path) == {"unit": "nm", "spacing": 50, "channels": 3}


def _voxel_of_channels(path: Path) -> dict[str, Any]:
    with tifffile.TiffFile(path) as tiff:
        metadata = tiff.imagej_metadata or {}
        return {key: metadata[key] for key in ("unit", "spacing", "channels")}


@pytest.mark.parametrize(
    ("options", "got", "advice"),
    [
        ({"imagej": True, "metadata": {"axes": "CYX"}}, "7 channels", "--axes ZYX"),
        ({"imagej": True, "metadata": {"axes": "TYX"}}, "7 time points", "--axes ZYX"),
        ({"ome": True, "metadata": {"axes": "CYX"}}, "7 channels", "--axes ZYX"),
        ({"metadata": {"axes": "TYX"}}, "7 time points", "--axes ZYX"),
    ],
)
def test_channels_and_times_are_slices_only_if_the_user_says_so(
    tmp_path: Path, options: dict[str, Any], got: str, advice: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", greys(), photometric="minisblack", **options)
    with pytest.raises(UserError) as error:
        open_volume(tmp_path / "a.tif")
    assert got in str(error.value)
    assert advice in str(error.value)
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif", axes="zyx"), greys())
    _, path = write_like(tmp_path / "a.tif", tmp_path / "out", axes="ZYX")
    np.testing.assert_array_equal(read_all(path), values())


def test_channels_beside_slices_are_refused(tmp_path: Path) -> None:
    stack = np.stack([greys(), greys()], axis=1)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(UserError, match="2 channels .axes ZCYX, 7 x 2 x 24 x 40.*; save the one"):
        open_volume(tmp_path / "a.tif")


def test_four_axes_without_names_are_asked_for(tmp_path: Path) -> None:
    stack = np.stack([greys(), greys()])
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    with pytest.raises(UserError, match="2 x 7 x 24 x 40.*--axes CZYX"):
        open_volume(tmp_path / "a.tif")
    with pytest.raises(UserError, match="2 channels"):
        open_volume(tmp_path / "a.tif", axes="CZYX")


def test_colours_are_refused_and_grey_in_colours_is_not(tmp_path: Path) -> None:
    grey = np.repeat(greys()[..., None], 3, axis=3)
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="rgb")
    np.testing.assert_array_equal(read_all(tmp_path / "grey.tif"), greys())
    grey[3, 0, 0, 1] += 1
    tifffile.imwrite(tmp_path / "colour.tif", grey, photometric="rgb")
    with (
        open_volume(tmp_path / "colour.tif") as reader,
        pytest.raises(UserError, match="page 3: is a colour image"),
    ):
        reader.read(3, 4)
    colours = np.zeros((3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "lut.tif", greys(), photometric="palette", colormap=colours)
    with pytest.raises(UserError, match="colour palette"):
        read_all(tmp_path / "lut.tif")
    tifffile.imwrite(tmp_path / "complex.tif", greys().astype(np.complex64))
    with pytest.raises(UserError, match="complex64"):
        open_volume(tmp_path / "complex.tif")


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(greys()[0], metadata=None)
        tiff.write(greys()[1, :8], metadata=None)
    with pytest.raises(UserError, match="pages of 40 x 24 and of 40 x 8 pixels"):
        open_volume(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "b.ome.tif") as tiff:
        tiff.write(greys(), photometric="minisblack", metadata={"axes": "ZYX"})
        tiff.write(greys(), photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(UserError, match="2 image series"):
        open_volume(tmp_path / "b.ome.tif")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_file_is_told(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    tifffile.imwrite(path, noise, photometric="minisblack", **LAYOUTS[layout])
    whole = path.read_bytes()
    for size in (0, 6, 300, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="a.tif"):
            read_all(path)


def test_another_file_with_the_suffix_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("not a TIFF at all, but long enough to be one")
    with pytest.raises(UserError, match="cannot be read"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [{}, {"imagej": True, "metadata": {"axes": "ZYX"}}])
def test_nothing_is_left_of_an_output_that_was_not_finished(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", greys(), photometric="minisblack", **options)
    dtype = np.dtype(np.uint8)
    with open_volume(tmp_path / "a.tif") as reader:
        with (
            pytest.raises(RuntimeError, match="stopped"),
            create_like(reader.info, reader, tmp_path, name="masks", dtype=dtype) as writer,
        ):
            writer.write(0, values()[:2])
            assert writer.written(0, 2)
            assert not writer.written(0, 3)
            raise RuntimeError("stopped")
        assert not list((tmp_path / "masks").iterdir())
        with (
            pytest.raises(ValueError, match="2 of 7"),
            create_like(reader.info, reader, tmp_path, name="masks", dtype=dtype) as writer,
        ):
            writer.write(0, values()[:2])
    assert not list((tmp_path / "masks").iterdir())
