"""Which reader opens what, and where output may go."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from emfast.volumes import create_like, library, open_volume
from emfast.volumes.axes import Layout, named_axes
from emfast.volumes.units import nanometres
from engines.errors import UserError
from tests.emfast.volumes.volumes import greys, read_all, write_like


def test_folders_with_images_or_a_stack_inside_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    tifffile.imwrite(tmp_path / "a" / "training.tif", greys(), photometric="minisblack")
    np.testing.assert_array_equal(read_all(tmp_path / "a"), greys())
    (tmp_path / "b" / "images").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "b" / "images" / "s.tif", greys()[0])
    np.testing.assert_array_equal(read_all(tmp_path / "b"), greys()[:1])


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing.tif: no such file or folder"):
        open_volume(tmp_path / "nothing.tif")
    (tmp_path / "a.txt").write_text("slices")
    with pytest.raises(UserError, match="a.txt: is of no format .*OME-Zarr, or MRC"):
        open_volume(tmp_path / "a.txt")
    tifffile.imwrite(tmp_path / "a.tif", greys())
    with pytest.raises(UserError, match="a.tif: has no arrays to choose from, but 'raw'"):
        open_volume(f"{tmp_path / 'a.tif'}:raw")


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.h5: needs h5py.*pip install 'emfast\[volumes\]'"):
        open_volume(tmp_path / "a.h5")
    with pytest.raises(UserError, match="needs nowhere"):
        library.load("nowhere", tmp_path)


def test_formats_cost_nothing_until_they_are_opened() -> None:
    code = (
        "import sys, emfast.volumes; print({'h5py', 'zarr', 'mrcfile', 'torch'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_the_input_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    source = tmp_path / "masks" / "a.tif"
    tifffile.imwrite(source, greys()[0])
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for out in (tmp_path, link):
        with pytest.raises(UserError, match="is the input itself"):
            write_like(source, out)
        with pytest.raises(UserError, match="is the input itself"):
            write_like(tmp_path / "masks", out)
    np.testing.assert_array_equal(tifffile.imread(source), greys()[0])


def test_zarr_is_not_written_into(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    names = ["z", "y", "x"]
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(7, 24, 40), dtype="uint8", dimension_names=names
    )
    array[:] = greys()
    with pytest.raises(UserError, match="is the input itself"):
        write_like(tmp_path / "a.zarr", tmp_path / "a.zarr")


def _source(folder: Path, kind: str) -> Path:
    """A volume of noise, whose copies do not shrink."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 200, 300), dtype=np.uint8)
    path = folder / f"a.{kind}"
    if kind in ("tif", "imagej"):
        path = folder / "a.tif"
        options = {"imagej": True, "metadata": {"axes": "ZYX"}} if kind == "imagej" else {}
        tifffile.imwrite(path, noise, photometric="minisblack", **options)
    elif kind == "images":
        path.mkdir()
        tifffile.imwrite(path / "s.tif", noise[0])
    elif kind == "h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["raw"] = noise
            for dimension, axis in zip(file["raw"].dims, "zyx", strict=True):
                dimension.label = axis
    elif kind == "zarr":
        array = pytest.importorskip("zarr").create_array(
            str(path), shape=noise.shape, dtype="uint8", dimension_names=["z", "y", "x"]
        )
        array[:] = noise
    else:
        pytest.importorskip("mrcfile").write(path, noise.view(np.int8))
    return path


KINDS = ("tif", "imagej", "images", "h5", "zarr", "mrc")


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_cannot_be_made_is_told(tmp_path: Path, kind: str) -> None:
    with open_volume(_source(tmp_path, kind)) as reader:
        like = {"name": "masks", "dtype": np.dtype(np.float32)}
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="file/masks: cannot be made"):
            create_like(reader.info, reader, tmp_path / "file", **like)
        writer = create_like(reader.info, reader, tmp_path / "out", **like)
        (tmp_path / "out" / "masks").rmdir()
        (tmp_path / "out" / "masks").write_text("")
        with pytest.raises(UserError, match="masks.*: cannot be written"), writer:
            writer.write(0, np.zeros((1, 200, 300), np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_told_and_leaves_nothing_that_looks_whole(tmp_path: Path, kind: str) -> None:
    with open_volume(_source(tmp_path, kind)) as reader:
        writer = create_like(
            reader.info, reader, tmp_path / "out", name="masks", dtype=np.dtype(np.float32)
        )
        noise = np.random.default_rng(1).random((reader.info.slices, 200, 300), np.float32)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Zarr's and the images' files are small ones, each of which must be too large.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
        try:
            with pytest.raises(UserError, match=r"cannot be written"), writer:
                writer.write(0, noise)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not [f for f in (tmp_path / "out" / "masks").iterdir() if not f.name.startswith(".")]
    left = [".a.zarr.partial"] if kind == "zarr" else []
    assert [f.name for f in (tmp_path / "out" / "masks").iterdir()] == left


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (4, "nm", 4),
        ("0.004", "\u00b5m", 4),
        (0.004, "micrometer", 4),
        (40, "angstrom", 4),
        (40, "\u00c5", 4),
        (0.004, "Micron", 4),
        (4, "pixel", None),
        (4, None, None),
        (0, "nm", None),
        (-1, "nm", None),
        (float("nan"), "nm", None),
        ("four", "nm", None),
    ],
)
def test_lengths_in_nanometres(value: object, unit: object, expected: float | None) -> None:
    found = nanometres(value, unit)
    assert found == (None if expected is None else pytest.approx(expected))


def test_layout_finds_slices_and_puts_them_back() -> None:
    array = np.arange(2 * 3 * 4).reshape(4, 1, 2, 3)
    layout = Layout("XTZY", array.shape)
    slices = layout.to_slices(array[layout.index(0, 2)])
    assert slices.shape == (2, 3, 4)
    assert slices[1, 2, 3] == array[3, 0, 1, 2]
    np.testing.assert_array_equal(layout.from_slices(slices), array)
    classes = layout.with_classes(5, before="Z")
    assert (classes.axes, classes.shape) == ("XTCZY", (4, 1, 5, 2, 3))
    stored = classes.from_slices(np.arange(120).reshape(2, 5, 3, 4))
    assert stored.shape == classes.shape
    assert stored[3, 0, 4, 1, 2] == 119
    assert named_axes(["Z", "y", "x", "channel"]) == "ZYXC"
    assert named_axes(["", "y", "x"]) is None
