"""Reading the slices of a folder, a multi-page TIFF or a single image one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import tifffile

from emfast.data.image import (
    TIFF_SUFFIXES,
    Grey,
    read_image,
    to_grey,
)
from emfast.data.stack import list_images
from emfast.data.tiff import check_complete, page_array, readable
from engines.errors import UserError


class Slices(Protocol):
    """Slices that are decoded when they are asked for.

    Attributes:
        names: one name a slice, without suffix and unique, as
            :func:`~emfast.data.stack.read_slices` gives them.
        files: the file of each slice, the same one for all pages of a TIFF.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]

    def __len__(self) -> int: ...

    def read(self, index: int) -> Grey:
        """Decode one slice.

        Returns:
            uint8 (height, width), greys in [0, 255].

        Raises:
            UserError: unreadable, truncated, or not an 8-bit grey image.
        """


@contextmanager
def open_slices(source: Path) -> Iterator[Slices]:
    """Open a folder of images, a multi-page TIFF or a single image.

    Images of a folder may differ in size; pages of a TIFF may not.

    Raises:
        UserError: nothing there, no images, or a damaged TIFF.
    """
    if source.is_dir():
        yield _Files(list_images(source), source)
    elif not source.exists():
        raise UserError(f"{source}: no such file or folder")
    elif source.suffix.lower() in TIFF_SUFFIXES:
        with readable(source):
            tiff = tifffile.TiffFile(source)
        with tiff:
            yield _Pages(tiff, source)
    else:
        yield _Files([source], source)


class _Files:
    """One image file a slice."""

    def __init__(self, files: list[Path], source: Path) -> None:
        self.files = tuple(files)
        self.names = tuple(file.stem for file in files)
        if len(set(self.names)) != len(self.names):
            raise UserError(f"{source}: holds several files of one name with different suffixes")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Grey:
        return read_image(self.files[index])


class _Pages:
    """The pages of a TIFF."""

    def __init__(self, tiff: tifffile.TiffFile, path: Path) -> None:
        self._tiff, self._path = tiff, path
        with readable(path):
            check_complete(tiff, str(path))
            sizes = {(page.imagewidth, page.imagelength) for page in map(_page, tiff.pages)}
        if not sizes:
            raise UserError(f"{path}: holds no pages")
        if len(sizes) > 1:
            (width, height), (other_width, other_height) = sorted(sizes)[:2]
            raise UserError(
                f"{path}: has pages of {width} x {height} and of {other_width} x {other_height} "
                "pixels; all slices of a stack must have one size"
            )
        count = len(tiff.pages)
        self.names = tuple(f"{path.stem}{i:04d}" for i in range(count))
        self.files = (path,) * count

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Grey:
        name = f"{self._path} page {index}"
        with readable(self._path):
            return to_grey(page_array(_page(self._tiff.pages[index]), name), name)


def _page(page: tifffile.TiffPage | tifffile.TiffFrame) -> tifffile.TiffPage:
    return page.aspage()
