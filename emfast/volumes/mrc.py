"""MRC volumes of electron microscopy."""

from __future__ import annotations

import math
import os
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from emfast.data.reading import readable
from emfast.volumes.axes import Layout, Pixels, given_axes, native, native_dtype, one_volume
from emfast.volumes.in_order import InOrder
from emfast.volumes.library import load
from emfast.volumes.units import nanometres
from emfast.volumes.volume import VolumeInfo, VolumeWriter, VoxelSize
from engines.errors import UserError
from engines.files import atomic_write

SUFFIXES = (".mrc", ".mrcs", ".rec", ".st", ".ali", ".map")
# Values that each of MRC's types can hold; masks of bytes go where mrcfile puts them, since its
# bytes are signed and 255 is none of theirs.
WRITTEN = {"uint8": "uint16", "uint16": "uint16", "float32": "float32", "uint32": "float32"}
LARGEST_EXACT = 2**24


class MrcReader:
    """An MRC volume. See :class:`~emfast.volumes.volume.VolumeReader`.

    Bytes (mode 0) are signed, as MRC2014 defines them, unless the header gives a largest value
    that no signed byte has: older programs wrote unsigned ones. Which it was is in the note.

    Args:
        path: of the file.
        axes: letters of the stored axes, where they are not those that the header names.
    """

    def __init__(self, path: Path, axes: str | None = None) -> None:
        self.path = path
        mrcfile = load("mrcfile", path)
        with readable(path), warnings.catch_warnings():
            # Trailing bytes and unknown extended headers do no harm.
            warnings.simplefilter("ignore", RuntimeWarning)
            mrc = mrcfile.mmap(path, "r")
        with mrc:
            self._voxels = Voxels.of(path, mrc)
            header, shape, dtype = mrc.header, mrc.data.shape, mrc.data.dtype
            if dtype.kind not in "iuf":
                raise UserError(f"{path}: holds {dtype} values; EM slices are integers or floats")
            letters = given_axes(axes, shape, str(path)) if axes else _axes(header, len(shape))
            self._layout = one_volume(letters, shape, str(path))
            self._unsigned = dtype == np.int8 and float(header.dmax) > 127
            voxel = mrc.voxel_size
            sizes = (nanometres(size, "angstrom") for size in (voxel.z, voxel.y, voxel.x))
            self.header = header.copy()
        self.names = tuple(f"{path.stem}{i:04d}" for i in range(self._layout.slices))
        self.info = VolumeInfo(
            str(path),
            "mrc",
            self._layout.slices,
            self._layout.size,
            np.dtype(np.uint8) if self._unsigned else native_dtype(dtype),
            letters,
            VoxelSize(*sizes),
            note=_byte_note(dtype, self._unsigned),
        )

    def read(self, start: int, stop: int) -> Pixels:
        with readable(self.path):
            block = np.array(self._voxels.map("r")[self._layout.index(start, stop)])
        slices = native(self._layout.to_slices(block))
        return slices.view(np.uint8) if self._unsigned else slices

    def writer(
        self, info: VolumeInfo, folder: Path, dtype: np.dtype[Any], classes: int, resume: bool
    ) -> VolumeWriter:
        if classes:
            raise UserError(
                f"{self.path}: MRC holds one channel, but there are {classes} classes to write; "
                "convert the input to TIFF, HDF5 or Zarr"
            )
        if dtype.name not in WRITTEN:
            raise UserError(
                f"{self.path}: MRC holds no {dtype} values; accepted: {', '.join(WRITTEN)}"
            )
        return MrcWriter(folder / self.path.name, self._layout, dtype, info.voxel, self.header)

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MrcWriter(InOrder):
    """An MRC volume, which appears when it is whole.

    See :class:`~emfast.volumes.volume.VolumeWriter`. Bytes are written as 16-bit integers and
    32-bit labels as floats, the only types of MRC that hold them.

    Args:
        path: to write.
        layout: axes and shape of the array.
        dtype: of the values to write.
        voxel: voxel size.
        header: of the input, for the order of its axes and what is one volume in it.
    """

    chunk = 1

    def __init__(
        self, path: Path, layout: Layout, dtype: np.dtype[Any], voxel: VoxelSize, header: Any
    ) -> None:
        super().__init__(path, layout.slices)
        self._layout, self._voxel, self._header = layout, voxel, header
        self._dtype = np.dtype(WRITTEN[dtype.name])
        self._sums = np.zeros(2)
        self._range = (np.inf, -np.inf)

    def __enter__(self) -> Self:
        mrcfile = load("mrcfile", self.path)
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.path))
            mode = mrcfile.utils.mode_from_dtype(self._dtype)
            with mrcfile.new_mmap(temporary, self._layout.shape, mode) as mrc:
                for name in ("ispg", "mz", "mapc", "mapr", "maps", "nxstart", "nystart", "nzstart"):
                    mrc.header[name] = self._header[name]
                mrc.header.origin = self._header.origin
                sizes = (self._voxel.x, self._voxel.y, self._voxel.z)
                mrc.voxel_size = tuple((size or 0) * 10 for size in sizes)
                self._voxels = Voxels.of(temporary, mrc)
            # Storing into a map of a hole ends the process where the disk is full.
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            self._exit = stack.pop_all()
        return self

    def _append(self, start: int, slices: Pixels) -> None:
        if slices.dtype == np.uint32 and int(slices.max()) > LARGEST_EXACT:
            raise UserError(
                f"{self.path}: MRC holds labels up to {LARGEST_EXACT}, and there are more; convert "
                "the input to TIFF, HDF5 or Zarr"
            )
        values = slices.astype(self._dtype, copy=False)
        index = self._layout.index(start, start + len(slices))
        self._voxels.map("r+")[index] = self._layout.from_slices(values)
        exact = values.astype(np.float64)
        self._sums += exact.sum(), np.square(exact).sum()
        self._range = (min(self._range[0], exact.min()), max(self._range[1], exact.max()))

    def _complete(self) -> None:
        mean, square = self._sums / math.prod(self._layout.shape)
        with load("mrcfile", self.path).mmap(self._voxels.path, "r+") as mrc:
            mrc.header.dmin, mrc.header.dmax = self._range
            mrc.header.dmean = mean
            mrc.header.rms = np.sqrt(max(square - mean**2, 0))


@dataclass(frozen=True)
class Voxels:
    """Where the voxels lie in a file.

    They are mapped anew for every access, since what was touched of a lasting map counts as this
    process's memory.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, path: Path, mrc: Any) -> Voxels:
        """Those of an open file of mrcfile's."""
        return cls(path, mrc.data.dtype, mrc.data.shape, mrc.data.offset)

    def map(self, mode: Literal["r", "r+"]) -> Pixels:
        """The array in the file."""
        return np.memmap(self.path, self.dtype, mode, self.offset, self.shape)


def _byte_note(dtype: np.dtype[Any], unsigned: bool) -> str:
    if dtype != np.int8:
        return ""
    if unsigned:
        return "bytes read as unsigned, since the header's largest value is above 127"
    return "bytes read as signed, as MRC2014 has them"


def _axes(header: Any, dimensions: int) -> str:
    """Letters of the sections, rows and columns; sections are slices where nothing is said."""
    order = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    letters = "".join("XYZ"[i - 1] for i in order) if sorted(order) == [1, 2, 3] else "ZYX"
    return letters[-dimensions:] if dimensions <= 3 else "T" + letters
