"""Which format a volume has, and the reader and writer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from emfast.data.stack import find_sources
from emfast.volumes import hdf5, images, mrc, tiff, zarr
from emfast.volumes.volume import VolumeInfo, VolumeReader, VolumeWriter
from engines.errors import UserError

ACCEPTED = (
    "a TIFF, a folder of images or a single one (PNG, TIFF, JPEG, BMP), HDF5 (.h5), Zarr or "
    "OME-Zarr, or MRC"
)


def open_volume(
    source: Path | str, *, axes: str | None = None, dataset: str | None = None
) -> VolumeReader:
    """Open a volume for reading; no voxels are read yet.

    Args:
        source: a TIFF, an image, a folder of images, an HDF5, Zarr or MRC volume; or a folder
            that holds one of the first three beside its masks, as
            :func:`~emfast.data.stack.find_sources` finds them. The array in an HDF5 file or a
            Zarr may stand behind a colon, as in ``cells.h5:volumes/raw`` or ``cells.zarr:1``.
        axes: letters of the stored axes, as in "ZYX", where the file does not name them or names
            them wrongly.
        dataset: the array in an HDF5 file or a Zarr.

    Raises:
        UserError: nothing there, another format, a file that is damaged, several arrays to choose
            from, axes that cannot be known, colours, several channels or time points, or a
            package that is not installed.
    """
    # What finds the format meets folders that cannot be looked into.
    try:
        return _open(source, axes, dataset)
    except OSError as error:
        raise UserError(f"{source}: cannot be opened ({error.strerror or error})") from None


def _open(source: Path | str, axes: str | None, dataset: str | None) -> VolumeReader:
    path = Path(source)
    if dataset is None and not path.exists():
        before, _, behind = str(source).rpartition(":")
        if before and Path(before).exists():
            path, dataset = Path(before), behind
    if not path.exists():
        raise UserError(f"{source}: no such file or folder")
    suffix = path.suffix.lower()
    if path.is_dir() and zarr.is_zarr(path):
        return zarr.ZarrReader(path, axes, dataset)
    if suffix in hdf5.SUFFIXES and path.is_file():
        return hdf5.Hdf5Reader(path, axes, dataset)
    if dataset is not None:
        raise UserError(
            f"{path}: has no arrays to choose from, but {dataset!r} was asked for; "
            "HDF5 files and Zarrs have"
        )
    path = find_sources(path)[0]
    suffix = path.suffix.lower()
    if suffix in tiff.SUFFIXES and path.is_file():
        return tiff.TiffReader(path, axes)
    if suffix in mrc.SUFFIXES and path.is_file():
        return mrc.MrcReader(path, axes)
    if path.is_dir() or suffix in images.SUFFIXES:
        return images.ImagesReader(path, axes)
    raise UserError(f"{path}: is of no format that can be read; give {ACCEPTED}")


def create_like(
    info: VolumeInfo,
    reader: VolumeReader,
    out: Path,
    *,
    name: str,
    dtype: np.dtype[Any],
    classes: int = 0,
    resume: bool = False,
) -> VolumeWriter:
    """What writes a volume with the layout, axes and voxel size of another.

    It has the same file name as the input in the folder ``out/name``: ``out/masks/cells.tif``,
    ``out/masks/cells.zarr`` with the array under the same path in it, and for a folder of images
    one file each in ``out/masks``.

    Args:
        info: of the volume to be like.
        reader: that read it.
        out: the folder to write to; ``out/name`` is made.
        name: of what is written: "masks", "probability" or "labels".
        dtype: of the values to write.
        classes: channels of each slice, or 0 for slices without an axis of channels.
        resume: go on with what an earlier run left, where the format allows it; else what it left
            is replaced.

    Raises:
        UserError: ``out`` would put it over the input, the folder cannot be written, or the
            format cannot hold the values.
    """
    folder = out / name
    writer = reader.writer(info, folder, np.dtype(dtype), classes, resume)
    read, write = reader.path.resolve(), writer.path.resolve()
    if read == write or (info.format == "zarr" and read in write.parents):
        raise UserError(f"{writer.path}: is the input itself; give another folder to write to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror or error})") from None
    return writer
