"""Slices as image files: a folder of them, or a single one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from emfast.data.image import TIFF_SUFFIXES, read_pixels
from emfast.data.stack import IMAGE_SUFFIXES, list_images
from emfast.volumes.axes import Pixels
from emfast.volumes.grey import single_channel
from emfast.volumes.tiff import TiffReader
from emfast.volumes.tiff_writer import write_image
from emfast.volumes.volume import VolumeInfo, VolumeWriter, VoxelSize
from engines.errors import UserError
from engines.files import atomic_write

SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in TIFF_SUFFIXES)
PNG_TYPES = ("uint8", "uint16")


class ImagesReader:
    """A folder of image files or one image. See :class:`~emfast.volumes.volume.VolumeReader`.

    Sorted by name. They may differ in size, not in type; only the headers of all are read at
    first, and the first image, which tells the type and, where it is a TIFF, the pixel size.

    Args:
        path: of the folder or image.
        axes: "ZYX", or "YX" for a single image: nothing else can be said of image files.
    """

    def __init__(self, path: Path, axes: str | None = None) -> None:
        self.path = path
        self.files = tuple(list_images(path) if path.is_dir() else [path])
        letters = "ZYX" if path.is_dir() else "YX"
        if axes is not None and axes.upper() != letters:
            raise UserError(f"{path}: image files have the axes {letters}, not {axes}")
        self.names = tuple(file.stem for file in self.files)
        if len(set(self.names)) != len(self.names):
            raise UserError(f"{path}: holds several files of one name with different suffixes")
        first, voxel = _read(self.files[0])
        self.info = VolumeInfo(
            str(path),
            "images",
            len(self.files),
            _common_size(self.files),
            first.dtype,
            letters,
            voxel,
        )

    def read(self, start: int, stop: int) -> Pixels:
        return np.stack([self._image(file) for file in self.files[start:stop]])

    def _image(self, file: Path) -> Pixels:
        image = _read(file)[0]
        if image.dtype != self.info.dtype:
            raise UserError(
                f"{file}: holds {image.dtype} values, but {self.files[0].name} {self.info.dtype}; "
                "all slices must have one type"
            )
        return image

    def writer(
        self, info: VolumeInfo, folder: Path, dtype: np.dtype[Any], classes: int, resume: bool
    ) -> VolumeWriter:
        single = not self.path.is_dir()
        return ImagesWriter(folder, single, self.files, dtype, classes, info.voxel, resume)

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ImagesWriter:
    """One file a slice, each of which appears when it is whole.

    See :class:`~emfast.volumes.volume.VolumeWriter`. TIFF stays TIFF and all else becomes PNG,
    or TIFF where PNG cannot hold the values: floats, 32-bit labels, several classes (as pages).

    Args:
        folder: to write into.
        single: whether the volume is the one file rather than the folder.
        files: of the input, one a slice.
        dtype: of the values.
        classes: channels of each slice, or 0 for slices without an axis of channels.
        voxel: pixel size for TIFF.
        resume: whether files that are there already count as written.
    """

    resumable = True
    chunk = 1

    def __init__(
        self,
        folder: Path,
        single: bool,
        files: tuple[Path, ...],
        dtype: np.dtype[Any],
        classes: int,
        voxel: VoxelSize,
        resume: bool,
    ) -> None:
        self._dtype, self._classes, self._voxel = dtype, classes, voxel
        self._targets = [self._target(folder, file) for file in files]
        self._resume, self._written = resume, set[int]()
        self.path = self._targets[0] if single else folder

    def _target(self, folder: Path, file: Path) -> Path:
        if file.suffix.lower() in TIFF_SUFFIXES:
            return folder / file.name
        png = self._dtype.name in PNG_TYPES and not self._classes
        return folder / f"{file.stem}{'.png' if png else '.tif'}"

    def write(self, start: int, slices: Pixels) -> None:
        for index, image in enumerate(slices.astype(self._dtype, copy=False), start):
            with atomic_write(self._targets[index]) as temporary:
                if temporary.suffix.lower() in TIFF_SUFFIXES:
                    write_image(temporary, image, self._voxel)
                else:
                    Image.fromarray(image).save(temporary, format="PNG")
            self._written.add(index)

    def written(self, start: int, stop: int) -> bool:
        # Looked up anew: other runs may write the rest meanwhile.
        return all(
            i in self._written or (self._resume and self._targets[i].exists())
            for i in range(start, stop)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is left to do; other runs may still write the rest."""


def _read(file: Path) -> tuple[Pixels, VoxelSize]:
    """An image file's pixels, (height, width), and its pixel size."""
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return single_channel(read_pixels(file), str(file)), VoxelSize(None, None, None)
    with TiffReader(file) as tiff:
        if tiff.info.slices != 1:
            raise UserError(
                f"{file}: holds {tiff.info.slices} pages; expected a single image, or a stack "
                "given by itself"
            )
        return tiff.read(0, 1)[0], tiff.info.voxel


def _common_size(files: tuple[Path, ...]) -> tuple[int, int] | None:
    """Height and width of all images; None where they differ or cannot be told from a header."""
    sizes = set()
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.add((image.height, image.width))
        except (OSError, Image.DecompressionBombError):
            return None
    return sizes.pop() if len(sizes) == 1 else None
