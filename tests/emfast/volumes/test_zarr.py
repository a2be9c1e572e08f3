"""Zarr and OME-Zarr, written and opened again by zarr."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emfast.volumes import VoxelSize, create_like, open_volume, slabs
from emfast.volumes.zarr_writer import ZarrWriter
from engines.errors import UserError
from tests.emfast.volumes.volumes import SHAPE, greys, read_all, values, write_like

zarr = pytest.importorskip("zarr")

AXES = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]


def _scale(*values: float) -> list[dict[str, Any]]:
    return [{"type": "scale", "scale": list(values)}]


def _array(path: Path, zarr_format: int, name: str | None = None, **options: Any) -> Path:
    array = zarr.create_array(
        str(path), name=name, shape=SHAPE, dtype="uint8", zarr_format=zarr_format,
        **{"chunks": (3, 10, 16), **options},
    )  # fmt: skip
    array[:] = greys()
    return path


def _ome(path: Path, version: str = "0.5", inside: str = "") -> Path:
    """Two scales with the metadata of the specification."""
    zarr_format = 3 if version == "0.5" else 2
    multiscales: dict[str, Any] = {
        "name": "cells",
        "axes": AXES,
        "datasets": [
            {"path": "0", "coordinateTransformations": _scale(0.05, 0.005, 0.004)},
            {"path": "1", "coordinateTransformations": _scale(0.05, 0.01, 0.008)},
        ],
    }
    if version == "0.5":
        attributes: dict[str, Any] = {"ome": {"version": "0.5", "multiscales": [multiscales]}}
    else:
        attributes = {"multiscales": [{"version": "0.4", **multiscales}]}
    group = zarr.open_group(str(path), path=inside, mode="a", zarr_format=zarr_format)
    group.attrs.update(attributes)
    names = {"dimension_names": ["z", "y", "x"]} if zarr_format == 3 else {}
    for name, step in (("0", 1), ("1", 2)):
        data = greys()[:, ::step, ::step]
        array = group.create_array(
            name, shape=data.shape, dtype="uint8", chunks=(3, 10, 16),
            chunk_key_encoding={"name": "default" if names else "v2", "separator": "/"}, **names,
        )  # fmt: skip
        array[:] = data
    return path


@pytest.mark.parametrize("name", [None, "volumes/raw"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_arrays_keep_path_format_chunks_and_names(
    tmp_path: Path, zarr_format: int, name: str | None
) -> None:
    named: dict[str, Any] = (
        {"dimension_names": ["z", "y", "x"]}
        if zarr_format == 3
        else {"attributes": {"_ARRAY_DIMENSIONS": ["z", "y", "x"]}}
    )
    source = _array(tmp_path / "cells.zarr", zarr_format, name, **named)
    np.testing.assert_array_equal(read_all(source), greys())
    info, path = write_like(source, tmp_path / "out")
    assert (info.axes, info.chunk) == ("ZYX", 3)
    assert path == tmp_path / "out" / "masks" / "cells.zarr"
    array = zarr.open_array(str(path), path=name or "", mode="r")
    assert array.metadata.zarr_format == zarr_format
    assert array.chunks == (3, 10, 16)
    np.testing.assert_array_equal(array[:], values())
    np.testing.assert_array_equal(read_all(path), values())
    assert [file.name for file in path.parent.iterdir()] == ["cells.zarr"]


def test_shards_are_written_whole(tmp_path: Path) -> None:
    source = _array(tmp_path / "a.zarr", 3, shards=(6, 20, 32), dimension_names=["z", "y", "x"])
    info, path = write_like(source, tmp_path / "out")
    assert info.chunk == 6
    array = zarr.open_array(str(path), mode="r")
    assert (array.shards, array.chunks) == ((6, 20, 32), (3, 10, 16))
    np.testing.assert_array_equal(array[:], values())


def test_slabs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "LARGEST_SLAB", 24 * 40 * 2)
    source = _array(tmp_path / "a.zarr", 3, shards=(6, 20, 32), dimension_names=["z", "y", "x"])
    _, path = write_like(source, tmp_path / "out", portion=3)
    array = zarr.open_array(str(path), mode="r")
    assert (array.shards, array.chunks) == (None, (2, 10, 16))
    np.testing.assert_array_equal(array[:], values())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_finest_scale_of_ome_zarr_is_read_and_kept(tmp_path: Path, version: str) -> None:
    source = _ome(tmp_path / "cells.zarr", version)
    np.testing.assert_array_equal(read_all(source), greys())
    info, path = write_like(source, tmp_path / "out")
    assert info.note == "scale 0 of 2 (full resolution): 0, 7 x 24 x 40"
    assert info.voxel == VoxelSize(pytest.approx(50), pytest.approx(5), pytest.approx(4))
    group = zarr.open_group(str(path), mode="r")
    attributes = group.attrs.asdict()
    content = attributes["ome"] if version == "0.5" else attributes
    assert content["multiscales"][0]["axes"] == AXES
    assert content["multiscales"][0]["datasets"] == [
        {"path": "0", "coordinateTransformations": _scale(0.05, 0.005, 0.004)}
    ]
    named = content if version == "0.5" else content["multiscales"][0]
    assert named["version"] == version
    np.testing.assert_array_equal(group["0"][:], values())
    chunk = path / "0" / ("c/0/0/0" if version == "0.5" else "0/0/0")
    assert chunk.is_file()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_classes_become_channels_of_ome_zarr(tmp_path: Path, version: str) -> None:
    source = _ome(tmp_path / "cells.zarr", version)
    _, path = write_like(source, tmp_path / "out", "float32", 2)
    group = zarr.open_group(str(path), mode="r")
    attributes = group.attrs.asdict()
    image = (attributes["ome"] if version == "0.5" else attributes)["multiscales"][0]
    assert [(axis["name"], axis["type"]) for axis in image["axes"]] == [
        ("c", "channel"), ("z", "space"), ("y", "space"), ("x", "space"),
    ]  # fmt: skip
    assert image["datasets"][0]["coordinateTransformations"] == _scale(1, 0.05, 0.005, 0.004)
    array = group["0"]
    assert array.chunks == (1, 3, 10, 16)
    np.testing.assert_array_equal(array[:], values("float32", 2).swapaxes(0, 1))
    assert "image-label" not in str(attributes)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_marked_as_such(tmp_path: Path, version: str) -> None:
    _, path = write_like(_ome(tmp_path / "cells.zarr", version), tmp_path / "out", "uint32")
    attributes = zarr.open_group(str(path), mode="r").attrs.asdict()
    content = attributes["ome"] if version == "0.5" else attributes
    assert content["image-label"] == {"version": version}


def test_a_coarser_scale_is_taken_when_named(tmp_path: Path) -> None:
    source = _ome(tmp_path / "cells.zarr")
    expected = greys()[:, ::2, ::2]
    for name in (f"{source}:1", source / "1"):
        np.testing.assert_array_equal(read_all(name), expected)
        with open_volume(name) as reader:
            assert reader.info.note == "scale 1 of 2: 1, 7 x 12 x 20"
            assert reader.info.voxel == VoxelSize(*map(pytest.approx, (50, 10, 8)))
            assert reader.path.name == "cells.zarr"


def test_images_in_a_collection_are_named(tmp_path: Path) -> None:
    source = _ome(tmp_path / "cells.zarr", inside="first")
    np.testing.assert_array_equal(read_all(source), greys())
    _, path = write_like(source, tmp_path / "out")
    np.testing.assert_array_equal(read_all(f"{path}:first"), values())
    _ome(tmp_path / "cells.zarr", inside="second")
    with pytest.raises(UserError, match="2 images .first, second.*as in cells.zarr:first"):
        open_volume(source)
    np.testing.assert_array_equal(read_all(f"{source}:second/1"), greys()[:, ::2, ::2])
    with pytest.raises(UserError, match="has no array 'third'; it holds first/0"):
        open_volume(f"{source}:third")


def test_arrays_in_a_group_are_named(tmp_path: Path) -> None:
    source = _array(tmp_path / "a.zarr", 2, "raw")
    with pytest.raises(UserError, match="a.zarr:raw: holds 7 x 24 x 40 .*--axes ZYX"):
        open_volume(source)
    np.testing.assert_array_equal(read_all(source, axes="XYZ"), greys().transpose(2, 1, 0))
    _array(tmp_path / "a.zarr", 2, "more/labels")
    with pytest.raises(UserError, match="holds .*raw .7 x 24 x 40, uint8.*choose one"):
        open_volume(source)
    np.testing.assert_array_equal(read_all(source / "raw", axes="ZYX"), greys())
    zarr.open_group(str(tmp_path / "empty.zarr"), mode="w")
    with pytest.raises(UserError, match="holds no arrays"):
        open_volume(tmp_path / "empty.zarr")


def test_channels_and_times_are_refused(tmp_path: Path) -> None:
    names = {"dimension_names": ["c", "y", "x"]}
    source = _array(tmp_path / "a.zarr", 3, **names)
    with pytest.raises(UserError, match="7 channels .*--axes ZYX"):
        open_volume(source)
    np.testing.assert_array_equal(read_all(source, axes="ZYX"), greys())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_run_goes_on_where_another_was_killed(tmp_path: Path, version: str) -> None:
    source = _ome(tmp_path / "cells.zarr", version)
    out = tmp_path / "out"
    like: dict[str, Any] = {"name": "masks", "dtype": np.dtype(np.uint8), "resume": True}
    with open_volume(source) as reader:
        with (
            pytest.raises(RuntimeError),
            create_like(reader.info, reader, out, **like) as writer,
        ):
            assert (writer.resumable, writer.chunk) == (True, 3)
            writer.write(0, values()[:5])
            raise RuntimeError
        assert not writer.path.exists()
        with create_like(reader.info, reader, out, **like) as writer:
            assert writer.written(0, 3)
            assert not writer.written(0, 4)
            assert not writer.written(3, 5)
            with pytest.raises(ValueError, match="nor does it start a chunk"):
                writer.write(4, values()[4:])
            writer.write(6, values()[6:])
        assert not writer.path.exists()
        with create_like(reader.info, reader, out, **like) as writer:
            assert writer.written(6, 7)
            writer.write(3, values()[3:6])
        np.testing.assert_array_equal(read_all(writer.path), values())
        with create_like(reader.info, reader, out, **like) as writer:
            assert writer.written(0, 7)
        np.testing.assert_array_equal(read_all(writer.path), values())
        with (
            pytest.raises(UserError, match="left by another run"),
            create_like(reader.info, reader, out, **{**like, "dtype": np.dtype(np.float32)}),
        ):
            pass
    # Without resuming, all is written anew; until then the earlier output stays.
    with open_volume(source) as reader:
        with create_like(reader.info, reader, out, **{**like, "resume": False}) as writer:
            assert not writer.written(0, 1)
            np.testing.assert_array_equal(read_all(writer.path), values())
            writer.write(0, values()[::-1])
        np.testing.assert_array_equal(read_all(writer.path), values()[::-1])
    assert [file.name for file in writer.path.parent.iterdir()] == ["cells.zarr"]


def _write_part(source: Path, out: Path, start: int, stop: int) -> None:
    with (
        open_volume(source) as reader,
        create_like(
            reader.info, reader, out, name="masks", dtype=np.dtype(np.uint8), resume=True
        ) as writer,
    ):
        writer.write(start, values()[start:stop])


def _die_writing(source: Path, out: Path) -> None:
    with (
        open_volume(source) as reader,
        create_like(
            reader.info, reader, out, name="masks", dtype=np.dtype(np.uint8), resume=True
        ) as writer,
    ):
        writer.write(0, values()[:5])
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = _ome(tmp_path / "cells.zarr")
    process = multiprocessing.get_context("spawn").Process(
        target=_die_writing, args=(source, tmp_path / "killed")
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    masks = tmp_path / "killed" / "masks"
    assert [file.name for file in masks.iterdir()] == [".cells.zarr.partial"]
    _write_part(source, tmp_path / "killed", 3, 7)
    _, whole = write_like(source, tmp_path / "whole")
    files = {f.relative_to(whole): f.read_bytes() for f in whole.rglob("*") if f.is_file()}
    killed = masks / "cells.zarr"
    assert files == {
        f.relative_to(killed): f.read_bytes() for f in killed.rglob("*") if f.is_file()
    }


def test_several_processes_write_one_volume(tmp_path: Path) -> None:
    source = _ome(tmp_path / "cells.zarr")
    context = multiprocessing.get_context("spawn")
    parts = [(0, 3), (3, 6), (6, 7)]
    processes = [
        context.Process(target=_write_part, args=(source, tmp_path / "out", *part))
        for part in parts
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "masks" / "cells.zarr"), values())
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 1


def test_a_run_may_end_after_another_has_finished_its_volume(tmp_path: Path) -> None:
    source = _ome(tmp_path / "cells.zarr")
    like: dict[str, Any] = {"name": "masks", "dtype": np.dtype(np.uint8), "resume": True}
    with (
        open_volume(source) as reader,
        create_like(reader.info, reader, tmp_path / "out", **like) as first,
        create_like(reader.info, reader, tmp_path / "out", **like) as second,
    ):
        first.write(0, values()[:3])
        second.write(3, values()[3:])
    np.testing.assert_array_equal(read_all(first.path), values())


@pytest.mark.parametrize("method", ["_make", "_check", "_marked"])
def test_a_run_may_begin_while_another_finishes_its_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """As one of several shards that has nothing to write."""
    source = _ome(tmp_path / "cells.zarr")
    like: dict[str, Any] = {"name": "masks", "dtype": np.dtype(np.uint8), "resume": True}
    original, begun = getattr(ZarrWriter, method), []

    with open_volume(source) as reader:
        first = create_like(reader.info, reader, tmp_path / "out", **like)

        def late(self: ZarrWriter, *args: Any) -> Any:
            if self is not first and not begun:
                begun.append(True)
                with first:
                    first.write(0, values())
            return original(self, *args)

        if method != "_make":  # there is a volume that was begun
            first.__enter__()
        monkeypatch.setattr(ZarrWriter, method, late)
        with create_like(reader.info, reader, tmp_path / "out", **like) as second:
            assert second.written(0, len(values()))
    assert begun
    np.testing.assert_array_equal(read_all(first.path), values())
    assert [file.name for file in first.path.parent.iterdir()] == [first.path.name]


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_waits_for_another_that_renames_its_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    source = _ome(tmp_path / "cells.zarr")
    like: dict[str, Any] = {"name": "masks", "dtype": np.dtype(np.uint8), "resume": True}
    monkeypatch.setattr("emfast.volumes.zarr_writer.FINISH_SECONDS", 0.2 if killed else 60.0)
    with open_volume(source) as reader:
        first = create_like(reader.info, reader, tmp_path / "out", **like)
        with first:
            first.write(0, values())
        claimed = first.path.with_name(f".{first.path.name}.1.done")
        (claimed / "written").mkdir(parents=True)
        for start in range(0, len(values()), first.chunk):
            (claimed / "written" / str(start)).touch()
        first.path.rename(claimed / "zarr")
        if not killed:
            finish = threading.Timer(0.2, (claimed / "zarr").rename, [first.path])
            finish.start()
        with create_like(reader.info, reader, tmp_path / "out", **like) as second:
            assert second.written(0, len(values()))
    np.testing.assert_array_equal(read_all(first.path), values())
    if killed:
        assert [file.name for file in first.path.parent.iterdir()] == [first.path.name]


def test_damage_is_told(tmp_path: Path) -> None:
    source = _ome(tmp_path / "cells.zarr")
    chunk = source / "0" / "c" / "1" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:10])
    with open_volume(source) as reader:
        reader.read(0, 3)
        with pytest.raises(UserError, match="cells.zarr:0: cannot be read, truncated or damaged"):
            reader.read(3, 6)
    (source / "0" / "zarr.json").write_text("{")
    with pytest.raises(UserError, match="cells.zarr"):
        open_volume(source)
    (source / "zarr.json").write_text("")
    with pytest.raises(UserError, match="cells.zarr"):
        open_volume(source)


def test_arrays_that_are_no_volumes(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "line.zarr"), data=np.arange(5))
    with pytest.raises(UserError, match=r"line\.zarr: holds int64 values in 1 axis; a volume has"):
        open_volume(tmp_path / "line.zarr")
    zarr.create_array(str(tmp_path / "one.zarr"), data=np.zeros((3, 4), np.uint8))
    with pytest.raises(UserError, match=r"is one array \(3 x 4, uint8\).*; leave 'raw' out"):
        open_volume(f"{tmp_path / 'one.zarr'}:raw")
