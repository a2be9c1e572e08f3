"""What a volume is to its readers and writers: slices in order, with axes and voxel size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class VoxelSize:
    """Edge lengths of a voxel in nanometres; None where the file does not tell."""

    z: float | None
    y: float | None
    x: float | None


@dataclass(frozen=True)
class VolumeInfo:
    """What is known of a volume without reading its voxels.

    Attributes:
        path: what was opened, with the dataset behind a colon where a file holds several.
        format: "tiff", "images", "hdf5", "zarr" or "mrc".
        slices: number of slices.
        size: height and width in pixels, or None where images of a folder differ in size.
        dtype: of the stored voxels.
        axes: stored axes in order, as letters of OME ("ZYX", "YX", "CZYX" with one channel, ...).
        voxel: voxel size.
        chunk: slices that are stored together and are best read and written together; where that
            is more than fits into memory, each time that a part of them is read costs as much as
            all of them.
        note: what was chosen where the file offers more than one reading (the scale of an
            OME-Zarr, the one channel that there is), to be printed; or "".
    """

    path: str
    format: str
    slices: int
    size: tuple[int, int] | None
    dtype: np.dtype[Any]
    axes: str
    voxel: VoxelSize
    chunk: int = 1
    note: str = ""


class VolumeReader(Protocol):
    """A volume opened for reading. A context manager. ``read`` may be called from any thread,
    but from one at a time.

    Attributes:
        path: of the file or folder.
        info: of the volume.
        names: one name a slice, unique, without suffix.
    """

    path: Path
    info: VolumeInfo
    names: tuple[str, ...]

    def read(self, start: int, stop: int) -> Pixels:
        """Decode the slices from ``start`` to before ``stop``.

        Returns:
            (slices, height, width) of the stored dtype, in z, y, x order, white as the largest
            value. Slices of different sizes can only be read one at a time.

        Raises:
            UserError: unreadable, truncated, or not grey.
        """

    def writer(
        self, info: VolumeInfo, folder: Path, dtype: np.dtype[Any], classes: int, resume: bool
    ) -> VolumeWriter:
        """What writes a volume of this one's format into ``folder``.

        See :func:`~emfast.volumes.opening.create_like`, which is what to call.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class VolumeWriter(Protocol):
    """A volume that is written slice by slice. A context manager: leaving it normally makes the
    volume whole; leaving it by an exception leaves what can be gone on with, and never something
    that looks whole.

    Attributes:
        path: of the volume.
        resumable: whether slices can be written in any order and in several runs, also at the
            same time. Such a volume is whole when the last of the runs that write it ends.
        chunk: slices that are stored together. Calls that do not go on where the one before
            stopped start at a multiple of it.
    """

    path: Path
    resumable: bool
    chunk: int

    def write(self, start: int, slices: Pixels) -> None:
        """Store slices from ``start`` on; in order where the format is not resumable.

        Args:
            start: index of the first of them.
            slices: (slices, height, width), or (slices, classes, height, width) where the writer
                was made for several channels, of the dtype that it was made for.
        """

    def written(self, start: int, stop: int) -> bool:
        """Whether the slices from ``start`` to before ``stop`` are stored, whole.

        Slices that an earlier run stored count where the writer was made to resume. A chunk is
        stored when the last of its slices has come.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...
