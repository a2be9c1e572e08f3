"""Arrays in HDF5 files, written and opened again by h5py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from emfast.volumes import VoxelSize, create_like, open_volume, slabs
from engines.errors import UserError
from tests.emfast.volumes.volumes import greys, read_all, values, write_like

h5py = pytest.importorskip("h5py")


def _file(path: Path, axes: str = "ZYX", label: bool = True, **options: object) -> Path:
    stack = greys().transpose(["ZYX".index(a) for a in axes if a in "ZYX"])
    stack = stack.reshape([stack.shape["".join(axes).replace("C", "").replace("T", "").index(a)]
                           if a in "ZYX" else 1 for a in axes])  # fmt: skip
    with h5py.File(path, "w") as file:
        array = file.create_dataset("volumes/raw", data=stack, **options)
        for dimension, axis in zip(array.dims, axes, strict=True):
            dimension.label = axis.lower() if label else ""
    return path


@pytest.mark.parametrize("axes", ["ZYX", "XYZ", "ZYXC", "TCZYX", "YXZ"])
@pytest.mark.parametrize("chunks", [None, 3])
@pytest.mark.parametrize("classes", [0, 2])
def test_layout_is_kept(tmp_path: Path, axes: str, chunks: int | None, classes: int) -> None:
    sides = {"Z": 3, "Y": 10, "X": 16}
    options = {"chunks": tuple(sides.get(a, 1) for a in axes), "compression": "gzip"}
    source = _file(tmp_path / "cells.h5", axes, **(options if chunks else {}))
    np.testing.assert_array_equal(read_all(source), greys())
    dtype = "float32" if classes else "uint8"
    info, path = write_like(source, tmp_path / "out", dtype, classes)
    assert (info.axes, info.chunk) == (axes, 3 if chunks else 1)
    assert info.path == f"{source}:volumes/raw"
    assert path == tmp_path / "out" / "masks" / "cells.h5"
    with h5py.File(source) as given, h5py.File(path) as file:
        array = file["volumes/raw"]
        expected = axes + ("C" if classes and "C" not in axes else "")
        assert "".join(d.label for d in array.dims).upper() == expected
        assert array.dtype == dtype
        assert array.compression == "gzip"
        if chunks:
            assert array.chunks[: len(axes)] == given["volumes/raw"].chunks
        if not classes:
            assert array.shape == given["volumes/raw"].shape
        letters = "TZCYX" if classes else "CTZYX"
        found = array[()].transpose(
            sorted(range(array.ndim), key=lambda i: letters.index(expected[i]))
        )
        np.testing.assert_array_equal(
            found.reshape(values(dtype, classes).shape), values(dtype, classes)
        )


def test_axes_that_are_not_named_are_asked_for(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.h5", label=False)
    with pytest.raises(UserError, match="a.h5:volumes/raw: holds 7 x 24 x 40 .*--axes ZYX"):
        open_volume(source)
    np.testing.assert_array_equal(read_all(source, axes="ZYX"), greys())
    np.testing.assert_array_equal(read_all(source, axes="XYZ"), greys().transpose(2, 1, 0))
    for axes, message in (("YX", "3 axes"), ("ZZX", "each axis once"), ("ABC", "each axis once")):
        with pytest.raises(UserError, match=message):
            open_volume(source, axes=axes)
    with h5py.File(tmp_path / "image.h5", "w") as file:
        file["image"] = greys()[0]
    np.testing.assert_array_equal(read_all(tmp_path / "image.h5"), greys()[:1])


def test_channels_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = greys()[..., :3]
        for dimension, axis in zip(file["raw"].dims, "yxc", strict=True):
            dimension.label = axis
    with pytest.raises(UserError, match="3 channels .axes YXC, 7 x 24 x 3"):
        open_volume(tmp_path / "a.h5")


def test_ilastik_names_axes_and_voxel_size(tmp_path: Path) -> None:
    keys = [{"key": k, "typeFlags": 2, "resolution": 0, "description": ""} for k in "zyx"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["exported_data"] = greys()
        file["exported_data"].attrs["axistags"] = json.dumps({"axes": keys})
        file["exported_data"].attrs["element_size_um"] = [0.05, 0.005, 0.004]
    info, path = write_like(tmp_path / "a.h5", tmp_path / "out")
    assert info.voxel == VoxelSize(50, 5, 4)
    with h5py.File(path) as file:
        assert json.loads(file["exported_data"].attrs["axistags"])["axes"] == keys
        assert file["exported_data"].attrs["element_size_um"].tolist() == [0.05, 0.005, 0.004]
    _, path = write_like(tmp_path / "a.h5", tmp_path / "out", "float32", 2)
    with h5py.File(path) as file:
        tags = json.loads(file["exported_data"].attrs["axistags"])["axes"]
    assert [tag["key"] for tag in tags] == [*"zyxc"]


def test_cremi_gives_voxel_size_in_nanometres(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.hdf")
    with h5py.File(source, "a") as file:
        file["volumes/raw"].attrs["resolution"] = (40, 4, 4)
    info, path = write_like(source, tmp_path / "out")
    assert info.voxel == VoxelSize(40, 4, 4)
    with h5py.File(path) as file:
        assert file["volumes/raw"].attrs["resolution"].tolist() == [40, 4, 4]


def test_one_of_several_arrays_is_named(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.h5")
    with h5py.File(source, "a") as file:
        file["table"] = np.zeros((5, 2))
        file["name"] = "cells"
    np.testing.assert_array_equal(read_all(source), greys())
    with h5py.File(source, "a") as file:
        file["volumes/labels"] = np.zeros((4, 5, 6), np.uint64)
    with pytest.raises(UserError) as error:
        open_volume(source)
    assert str(error.value).endswith(
        "a.h5: holds volumes/labels (4 x 5 x 6, uint64), volumes/raw (7 x 24 x 40, uint8); "
        "choose one, as in a.h5:volumes/labels"
    )
    np.testing.assert_array_equal(read_all(f"{source}:volumes/raw"), greys())
    np.testing.assert_array_equal(read_all(source, dataset="/volumes/raw"), greys())
    with pytest.raises(UserError, match="no array 'raw'; it holds .*volumes/raw"):
        open_volume(f"{source}:raw")
    with pytest.raises(UserError, match="no array 'volumes'"):
        open_volume(source, dataset="volumes")
    with pytest.raises(UserError, match="name: holds object values in 0 axes"):
        open_volume(source, dataset="name")


def test_thick_chunks_are_gathered_and_too_thick_ones_thinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _file(tmp_path / "a.h5", chunks=(6, 24, 40))
    for limit, depth in ((2**28, 6), (24 * 40 * 3, 3), (24 * 40 * 2 + 5, 2), (10, 1)):
        monkeypatch.setattr(slabs, "LARGEST_SLAB", limit)
        for portion in (1, 2, 7):
            _, path = write_like(source, tmp_path / "out", portion=portion)
            with h5py.File(path) as file:
                assert file["volumes/raw"].chunks == (depth, 24, 40)
                np.testing.assert_array_equal(file["volumes/raw"], values())


def test_damage_is_told(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.h5", chunks=(1, 24, 40), compression="gzip")
    whole = source.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        source.write_bytes(whole[:size])
        with pytest.raises(UserError, match="a.h5: cannot be read, truncated or damaged"):
            read_all(source)
    source.write_bytes(whole)
    with h5py.File(source) as file:
        at = file["volumes/raw"].id.get_chunk_info(3).byte_offset
    source.write_bytes(whole[:at] + bytes(50) + whole[at + 50 :])
    with pytest.raises(UserError, match="cannot be read, truncated or damaged"):
        read_all(source)
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(UserError, match="holds no arrays"):
        open_volume(tmp_path / "empty.h5")


def test_nothing_is_left_of_an_output_that_was_not_finished(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.h5")
    with (
        open_volume(source) as reader,
        pytest.raises(RuntimeError),
        create_like(
            reader.info, reader, tmp_path, name="masks", dtype=np.dtype(np.uint8)
        ) as writer,
    ):
        writer.write(0, values()[:2])
        raise RuntimeError
    assert not list((tmp_path / "masks").iterdir())
