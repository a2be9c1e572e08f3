"""Reading TIFF stacks page by page: plain, ImageJ's and OME's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import tifffile

from emfast.data.tiff import (
    check_chain,
    check_colours,
    page_array,
    readable,
    white_is_largest,
)
from emfast.volumes.axes import (
    Layout,
    Pixels,
    given_axes,
    native,
    native_dtype,
    one_volume,
    shape_text,
    unknown_axes,
)
from emfast.volumes.grey import single_channel
from emfast.volumes.tiff_voxels import tiff_voxel_size
from emfast.volumes.volume import VolumeInfo, VolumeWriter
from engines.errors import UserError

SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")


class TiffReader:
    """The first image series of a TIFF. See :class:`~emfast.volumes.volume.VolumeReader`.

    Args:
        path: of the file.
        axes: letters of the stored axes, where they are not those that the file names.

    Attributes:
        flavour: "ome", "imagej" or "plain".
        tile: height and width of the tiles, or None for strips.
        resolution: X and Y resolution and their unit, as in the first page's tags.
    """

    def __init__(self, path: Path, axes: str | None = None) -> None:
        self.path = path
        with readable(path):
            self._tiff = tifffile.TiffFile(path)
        try:
            with readable(path):
                self._open(axes)
        except BaseException:
            self._tiff.close()
            raise

    def _open(self, axes: str | None) -> None:
        tiff, path = self._tiff, self.path
        check_chain(tiff, str(path))
        if not len(tiff.pages):
            raise UserError(f"{path}: holds no pages")
        series = tiff.series[0]
        self.flavour = series.kind if series.kind in ("ome", "imagej") else "plain"
        if tiff.is_imagej and self.flavour == "plain":
            images = (tiff.imagej_metadata or {}).get("images", 0)
            if images > len(tiff.pages):
                raise UserError(
                    f"{path}: is truncated or damaged, it ends before the last of its {images} "
                    "images"
                )
        # Without metadata the pages are the slices, even where they differ in how they are
        # compressed, by which tifffile tells series apart.
        self._series = None if series.kind in ("generic", "uniform") else series
        note = ""
        if self._series is None:
            layout = _pages_layout(tiff, axes, str(path))
            dtype = tiff.pages.first.dtype
        else:
            layout = _series_layout(series, axes, str(path))
            dtype = series.dtype
            if len(tiff.series) > 1:
                others = [s for s in tiff.series[1:] if s.shape == series.shape]
                if others or self.flavour == "plain":
                    raise UserError(
                        f"{path}: holds {len(tiff.series)} image series; save the one to read by "
                        "itself"
                    )
                note = f"first of {len(tiff.series)} image series"
            if series.is_pyramidal:
                note = f"full resolution of {len(series.levels)} ({shape_text(series.shape)})"
        if dtype is None or dtype.kind not in "buif":
            raise UserError(f"{path}: holds {dtype} values; EM slices are integers or floats")
        first = tiff.pages.first if self._series is None else series.keyframe
        self.tile = (first.tilelength, first.tilewidth) if first.is_tiled else None
        self.resolution = (*first.resolution, first.resolutionunit)
        self.names = tuple(f"{path.stem}{i:04d}" for i in range(layout.slices))
        self.info = VolumeInfo(
            str(path),
            "tiff",
            layout.slices,
            layout.size,
            native_dtype(dtype),
            layout.axes,
            tiff_voxel_size(tiff, self.flavour),
            note=note,
        )

    def read(self, start: int, stop: int) -> Pixels:
        with readable(self.path):
            offset = None if self._series is None else self._series.dataoffset
            if self._series is not None and offset is not None and "S" not in self._series.axes:
                return self._read_contiguous(offset, start, stop)
            return np.stack([self._page(i) for i in range(start, stop)])

    def _read_contiguous(self, offset: int, start: int, stop: int) -> Pixels:
        """Slices that follow one another in the file: ImageJ's large files have no other pages."""
        assert self._series is not None
        assert self.info.size is not None
        height, width = self.info.size
        dtype = self._series.dtype.newbyteorder(self._tiff.byteorder)
        page = height * width
        values = self._tiff.filehandle.read_array(
            dtype, (stop - start) * page, offset + start * page * dtype.itemsize
        )
        return native(white_is_largest(values, self._series.keyframe)).reshape(-1, height, width)

    def _page(self, index: int) -> Pixels:
        source = f"{self.path} page {index}"
        if self._series is None:
            return single_channel(page_array(self._tiff.pages[index].aspage(), source), source)
        keyframe = self._series.keyframe
        array = self._tiff.asarray(key=index, series=self._series)
        return single_channel(white_is_largest(array, keyframe), source)

    def writer(
        self, info: VolumeInfo, folder: Path, dtype: np.dtype[Any], classes: int, resume: bool
    ) -> VolumeWriter:
        from emfast.volumes.tiff_writer import TiffWriter

        return TiffWriter(
            folder / self.path.name,
            info,
            dtype,
            classes,
            flavour=self.flavour,
            tile=self.tile,
            resolution=self.resolution,
        )

    def close(self) -> None:
        self._tiff.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _pages_layout(tiff: tifffile.TiffFile, axes: str | None, source: str) -> Layout:
    """Every page is a slice; they must be alike."""
    first = tiff.pages.first
    for index, page in enumerate(tiff.pages):
        page = page.aspage()
        if (page.imagelength, page.imagewidth) != (first.imagelength, first.imagewidth):
            raise UserError(
                f"{source}: has pages of {first.imagewidth} x {first.imagelength} and of "
                f"{page.imagewidth} x {page.imagelength} pixels; all slices of a stack must have "
                "one size"
            )
        if page.dtype != first.dtype:
            raise UserError(
                f"{source}: page {index} holds {page.dtype} values, but the first {first.dtype}; "
                "all slices of a stack must have one type"
            )
    size = (first.imagelength, first.imagewidth)
    shape = size if len(tiff.pages) == 1 else (len(tiff.pages), *size)
    letters = given_axes(axes, shape, source) if axes else "ZYX"[-len(shape) :]
    return one_volume(letters, shape, source)


def _series_layout(series: tifffile.TiffPageSeries, axes: str | None, source: str) -> Layout:
    """The axes that the metadata name, with pages that follow one another as slices."""
    check_colours(series.keyframe, source)
    letters, shape = series.axes, series.shape
    if letters.endswith("S"):
        letters, shape = letters[:-1], shape[:-1]
    if axes:
        letters = given_axes(axes, shape, source)
    else:
        unnamed = [i for i, axis in enumerate(letters) if axis in "QI" and shape[i] > 1]
        if len(unnamed) > 1:
            raise unknown_axes(shape, source)
        if unnamed and "Z" not in letters:
            letters = letters[: unnamed[0]] + "Z" + letters[unnamed[0] + 1 :]
        # Letters of no length more than once, as in QQYX, mean nothing.
        kept = [i for i, axis in enumerate(letters) if axis in "ZYX" or shape[i] > 1]
        letters = "".join(letters[i] for i in kept)
        shape = tuple(shape[i] for i in kept)
    layout = one_volume(letters, shape, source)
    stored = "".join(a for a in letters if a in "ZYX")
    pages = series.dataoffset is not None or len(series) == layout.slices
    if stored not in ("ZYX", "YX") or not pages:
        raise UserError(
            f"{source}: its pages are not slices (axes {letters}, {shape_text(shape)}); save it "
            "with one page a slice"
        )
    return layout
