"""Arrays in HDF5 files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from emfast.data.reading import readable
from emfast.volumes.axes import (
    Layout,
    Pixels,
    given_axes,
    named_axes,
    native,
    native_dtype,
    one_volume,
    unknown_axes,
)
from emfast.volumes.in_order import InOrder
from emfast.volumes.library import check_array, list_arrays, load, only_array
from emfast.volumes.slabs import Slabs, slab_depth
from emfast.volumes.units import nanometres
from emfast.volumes.volume import VolumeInfo, VolumeWriter, VoxelSize
from engines.errors import UserError
from engines.files import atomic_write

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
# Voxel size, z first: ilastik's and Fiji's in micrometres, CREMI's in nanometres.
SIZES = {"element_size_um": "um", "resolution": "nm"}
# Height and width of chunks where the input has none.
CHUNK_SIDE = 512


class Hdf5Reader:
    """An array in an HDF5 file. See :class:`~emfast.volumes.volume.VolumeReader`.

    Args:
        path: of the file.
        axes: letters of the array's axes, where the file does not name them.
        dataset: the array's path in the file; may be left out where there is one.
    """

    def __init__(self, path: Path, axes: str | None = None, dataset: str | None = None) -> None:
        self.path = path
        h5py = load("h5py", path)
        with readable(path):
            # Read-only network folders know no locks.
            self._file = h5py.File(path, "r", locking="best-effort")
        try:
            with readable(path):
                self._array = _choose(h5py, self._file, path, dataset)
                self._open(axes)
        except BaseException:
            self._file.close()
            raise

    def _open(self, axes: str | None) -> None:
        array = self._array
        self.dataset: str = array.name.strip("/")
        source = f"{self.path}:{self.dataset}"
        letters = given_axes(axes, array.shape, source) if axes else _axes(array)
        if letters is None:
            raise unknown_axes(array.shape, source)
        self._layout = one_volume(letters, array.shape, source)
        chunks = dict(zip(letters, array.chunks or array.shape, strict=True))
        self.names = tuple(f"{self.path.stem}{i:04d}" for i in range(self._layout.slices))
        self.info = VolumeInfo(
            source,
            "hdf5",
            self._layout.slices,
            self._layout.size,
            native_dtype(array.dtype),
            letters,
            _voxel_size(array),
            chunk=chunks.get("Z", 1) if array.chunks else 1,
        )

    def read(self, start: int, stop: int) -> Pixels:
        with readable(self.info.path):
            block = self._array[self._layout.index(start, stop)]
        return native(self._layout.to_slices(block))

    def writer(
        self, info: VolumeInfo, folder: Path, dtype: np.dtype[Any], classes: int, resume: bool
    ) -> VolumeWriter:
        # Channels last, as ilastik writes them.
        layout = self._layout.with_classes(classes, before=None)
        sides = {"Y": CHUNK_SIDE, "X": CHUNK_SIDE}
        if self._array.chunks:
            sides = dict(zip(self._layout.axes, self._array.chunks, strict=True))
        attributes = {name: self._array.attrs[name] for name in SIZES if name in self._array.attrs}
        if "axistags" in self._array.attrs:
            attributes["axistags"] = _axistags(self._array.attrs["axistags"], layout)
        path = folder / self.path.name
        return Hdf5Writer(path, self.dataset, layout, dtype, sides, attributes)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Hdf5Writer(InOrder):
    """An HDF5 file of one array, which appears when it is whole.

    See :class:`~emfast.volumes.volume.VolumeWriter`. Not resumable: a file whose writer was killed
    may be beyond repair.

    Args:
        path: to write.
        dataset: the array's path in it.
        layout: axes and shape of the array.
        dtype: of the values.
        sides: length of the chunks along each axis; 1 where an axis is not named.
        attributes: of the array.
    """

    def __init__(
        self,
        path: Path,
        dataset: str,
        layout: Layout,
        dtype: np.dtype[Any],
        sides: dict[str, int],
        attributes: dict[str, Any],
    ) -> None:
        super().__init__(path, layout.slices)
        self._dataset, self._layout, self._dtype = dataset, layout, dtype
        self._sides, self._attributes = sides, attributes
        pixels = math.prod(layout.size) * layout.length("C") * dtype.itemsize
        self.chunk = slab_depth(sides.get("Z", 1), pixels)
        self._slabs = Slabs(layout.slices, self.chunk, self._store)

    def __enter__(self) -> Self:
        h5py = load("h5py", self.path)
        layout = self._layout
        sides = {**self._sides, "Z": self.chunk}
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.path))
            file = stack.enter_context(_created(h5py, temporary))
            self._array = file.create_dataset(
                self._dataset,
                layout.shape,
                self._dtype,
                chunks=tuple(
                    min(sides.get(axis, 1), length)
                    for axis, length in zip(layout.axes, layout.shape, strict=True)
                ),
                compression="gzip",
                shuffle=True,
            )
            for dimension, axis in zip(self._array.dims, layout.axes, strict=True):
                dimension.label = axis.lower()
            self._array.attrs.update(self._attributes)
            self._exit = stack.pop_all()
        return self

    def _append(self, start: int, slices: Pixels) -> None:
        self._slabs.add(start, slices)

    def _store(self, start: int, slab: Pixels) -> None:
        index = self._layout.index(start, start + len(slab))
        values = self._layout.from_slices(slab.astype(self._dtype, copy=False))
        try:
            self._array[index] = values
        except OSError as error:
            # HDF5's own text is many lines.
            reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
            raise OSError(error.errno, reason) from error

    def written(self, start: int, stop: int) -> bool:
        return stop <= self._next - self._slabs.pending


@contextmanager
def _created(h5py: Any, path: Path) -> Iterator[Any]:
    """A new file."""
    # Without a cache a chunk is stored when it is written, once since it is whole. With one, a
    # full disk is only noticed when the file is closed, and HDF5 then ends the process.
    file = h5py.File(path, "w", rdcc_nbytes=0)
    try:
        yield file
    except BaseException:
        with suppress(OSError, RuntimeError):
            file.close()
        raise
    try:
        file.close()
    except RuntimeError as error:
        raise OSError(None, str(error)) from error


def _choose(h5py: Any, file: Any, path: Path, dataset: str | None) -> Any:
    """The array named, or the only one that can be a volume."""
    if dataset is not None and isinstance(file.get(dataset), h5py.Dataset):
        check_array(file[dataset], f"{path}:{dataset}")
        return file[dataset]
    arrays: dict[str, Any] = {}

    def collect(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "buif" and node.ndim >= 2:
            arrays[name] = node

    file.visititems(collect)
    if dataset is not None:
        raise UserError(f"{path}: has no array {dataset!r}; it holds {list_arrays(arrays)}")
    return only_array(arrays, path)


def _axes(array: Any) -> str | None:
    """Axes as vigra (ilastik) or HDF5's own dimension labels name them; YX for two."""
    if "axistags" in array.attrs:
        tags = json.loads(array.attrs["axistags"])["axes"]
        letters = named_axes([tag["key"] for tag in tags])
    else:
        letters = named_axes([dimension.label for dimension in array.dims])
    if letters is not None and len(letters) == array.ndim:
        return letters
    return "YX" if array.ndim == 2 else None


def _axistags(tags: Any, layout: Layout) -> str:
    """vigra's tags of the axes, with one for the channels where the input has none."""
    axes = json.loads(tags)["axes"]
    if len(axes) < len(layout.axes):
        axes.append({"key": "c", "typeFlags": 1, "resolution": 0, "description": ""})
    return json.dumps({"axes": axes})


def _voxel_size(array: Any) -> VoxelSize:
    for name, unit in SIZES.items():
        values = np.ravel(array.attrs.get(name, ()))
        if len(values) == 3:
            return VoxelSize(*(nanometres(value, unit) for value in values))
    return VoxelSize(None, None, None)
