"""Writing TIFF stacks slice by slice: plain, ImageJ's and OME's."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import tifffile

from emfast.volumes.axes import Pixels
from emfast.volumes.in_order import InOrder
from emfast.volumes.volume import VolumeInfo, VoxelSize
from engines.files import atomic_write

# Classic TIFF ends at 4 GiB; this much is left for what is not pixels, besides what each page's
# directory takes.
HEADROOM = 2**20
PAGE_DIRECTORY = 512
IMAGEJ_TYPES = ("uint8", "uint16", "float32")


class TiffWriter(InOrder):
    """One TIFF, which appears when it is whole.

    See :class:`~emfast.volumes.volume.VolumeWriter`. ImageJ's own layout is uncompressed, since
    ImageJ does not read it otherwise, and from 4 GiB on has one page directory for all slices, as
    ImageJ writes it. OME-TIFF takes its place for types that ImageJ does not know, and that of
    plain TIFF for several classes, whose pages could not be told from slices. The rest is
    compressed with zlib and is BigTIFF where it could grow beyond 4 GiB.

    Args:
        path: to write.
        info: axes and voxel size.
        dtype: of the values.
        classes: channels of each slice, or 0 for slices without an axis of channels.
        flavour: "ome", "imagej" or "plain".
        tile: height and width of the tiles, or None for strips.
        resolution: X and Y resolution and their unit, for a plain TIFF.
    """

    chunk = 1

    def __init__(
        self,
        path: Path,
        info: VolumeInfo,
        dtype: np.dtype[Any],
        classes: int,
        *,
        flavour: str,
        tile: tuple[int, int] | None,
        resolution: tuple[float, float, int],
    ) -> None:
        super().__init__(path, info.slices)
        self._dtype, self._classes, self._resolution = dtype, classes, resolution
        assert info.size is not None
        channels = (classes,) if classes else ()
        self._shape = (info.slices, *channels, *info.size)
        self._axes = "ZCYX" if classes else "ZYX"
        self._voxel = info.voxel
        if (flavour == "imagej" and dtype.name not in IMAGEJ_TYPES) or (
            flavour == "plain" and classes
        ):
            flavour = "ome"
        self._flavour = flavour
        self._tile = tile
        pages = info.slices * max(classes, 1)
        size = math.prod(self._shape) * dtype.itemsize
        self._large = size + pages * PAGE_DIRECTORY + HEADROOM >= 2**32

    def __enter__(self) -> Self:
        imagej = self._flavour == "imagej"
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.path))
            self._tiff = stack.enter_context(
                tifffile.TiffWriter(
                    temporary, bigtiff=self._large and not imagej, imagej=imagej, ome=False
                )
            )
            self._exit = stack.pop_all()
        return self

    def _append(self, start: int, slices: Pixels) -> None:
        for index, page in enumerate(slices.reshape(-1, *self._shape[-2:])):
            self._write_page(page.astype(self._dtype, copy=False), start + index == 0)

    def _write_page(self, page: Pixels, first: bool) -> None:
        if self._flavour == "imagej":
            self._tiff.write(
                page,
                photometric="minisblack",
                contiguous=True,
                truncate=self._large,
                metadata=_imagej_metadata(self._voxel),
                **_per_nanometre(self._voxel),
            )
            return
        plain = self._flavour == "plain"
        x, y, unit = self._resolution
        self._tiff.write(
            page,
            photometric="minisblack",
            compression="zlib",
            tile=self._tile,
            metadata=None,
            description=_ome_description(self._shape, self._axes, self._dtype, self._voxel)
            if first and not plain
            else None,
            resolution=(x, y) if plain else None,
            resolutionunit=unit if plain else None,
        )

    def _complete(self) -> None:
        if self._flavour == "imagej":
            # Only now: tifffile would take slices that come one by one for channels.
            self._tiff.overwrite_description(
                tifffile.imagej_description(
                    self._shape, axes=self._axes, **_imagej_metadata(self._voxel)
                )
            )


def write_image(path: Path, image: Pixels, voxel: VoxelSize) -> None:
    """Write one slice, (height, width) or (classes, height, width), as a plain TIFF."""
    resolution: dict[str, Any] = {}
    if voxel.x and voxel.y:
        resolution = {"resolution": (1e7 / voxel.x, 1e7 / voxel.y), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, ome=False) as tiff:
        for page in image.reshape(-1, *image.shape[-2:]):
            tiff.write(
                page, photometric="minisblack", compression="zlib", metadata=None, **resolution
            )


def _imagej_metadata(voxel: VoxelSize) -> dict[str, Any]:
    # The unit is that of the resolution too, and a page without one has 1 pixel per unit.
    if not (voxel.x and voxel.y):
        return {}
    return {"unit": "nm"} if voxel.z is None else {"spacing": voxel.z, "unit": "nm"}


def _per_nanometre(voxel: VoxelSize) -> dict[str, Any]:
    return {"resolution": (1 / voxel.x, 1 / voxel.y)} if voxel.x and voxel.y else {}


def _ome_description(
    shape: tuple[int, ...], axes: str, dtype: np.dtype[Any], voxel: VoxelSize
) -> str:
    """OME-XML of pages that follow one another, in ASCII as TIFF asks for."""
    sizes: dict[str, Any] = {}
    for axis, size in (("X", voxel.x), ("Y", voxel.y), ("Z", voxel.z)):
        if size is not None:
            sizes |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
    xml = tifffile.OmeXml()
    *pages, height, width = shape
    xml.addimage(dtype, shape, (math.prod(pages), 1, 1, height, width, 1), axes=axes, **sizes)
    return xml.tostring(declaration=True)
