"""Zarr arrays (formats 2 and 3), alone, in groups, and as OME-Zarr."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from emfast.data.reading import readable
from emfast.volumes.axes import (
    Pixels,
    given_axes,
    named_axes,
    native,
    native_dtype,
    one_volume,
    shape_text,
    unknown_axes,
)
from emfast.volumes.library import check_array, list_arrays, load, only_array
from emfast.volumes.ome_zarr import Multiscale
from emfast.volumes.slabs import slab_depth
from emfast.volumes.volume import VolumeInfo, VolumeWriter, VoxelSize
from emfast.volumes.zarr_writer import ZarrLayout, ZarrWriter
from engines.errors import UserError

# xarray's attribute that names the axes of arrays of format 2.
DIMENSIONS = "_ARRAY_DIMENSIONS"


def is_zarr(path: Path) -> bool:
    """Whether a folder is an array or a group of Zarr's, of either format."""
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))


class ZarrReader:
    """An array in a Zarr. See :class:`~emfast.volumes.volume.VolumeReader`.

    Args:
        path: of the Zarr, or of a group or an array in it.
        axes: letters of the array's axes, where the Zarr does not name them.
        dataset: the array's path in ``path``; may be left out where there is one. Of the scales
            of an OME-Zarr the finest is taken.
    """

    def __init__(self, path: Path, axes: str | None = None, dataset: str | None = None) -> None:
        self._zarr = load("zarr", path)
        # The outermost folder that is called a Zarr is what the output is called after.
        whole = path.absolute()
        named = [p for p in (*reversed(whole.parents), whole) if p.suffix == ".zarr" and is_zarr(p)]
        self.path = named[0] if named and named[0] != whole else path
        inside = "" if self.path == path else whole.relative_to(self.path).as_posix()
        inside = "/".join(part.strip("/") for part in (inside, dataset or "") if part.strip("/"))
        with readable(path):
            self.dataset, self._multiscale = self._choose(inside)
            self._open(axes)

    def _open(self, axes: str | None) -> None:
        array = self._array = self._node(self.dataset)
        source = f"{self.path}:{self.dataset}" if self.dataset else str(self.path)
        check_array(array, source)
        letters = given_axes(axes, array.shape, source) if axes else self._axes()
        if letters is None or len(letters) != array.ndim:
            raise unknown_axes(array.shape, source)
        self._layout = one_volume(letters, array.shape, source)
        stored = dict(zip(letters, array.shards or array.chunks, strict=True))
        self.names = tuple(f"{self.path.stem}{i:04d}" for i in range(self._layout.slices))
        multiscale, note = self._multiscale, ""
        if multiscale is not None and len(multiscale.paths) > 1:
            index = multiscale.paths.index(self.dataset)
            note = (
                f"scale {index} of {len(multiscale.paths)}"
                f"{' (full resolution)' if index == 0 else ''}: {self.dataset}, "
                f"{shape_text(array.shape)}"
            )
        self.info = VolumeInfo(
            source,
            "zarr",
            self._layout.slices,
            self._layout.size,
            native_dtype(array.dtype),
            letters,
            VoxelSize(None, None, None)
            if multiscale is None
            else multiscale.voxel_size(self.dataset),
            chunk=stored.get("Z", 1),
            note=note,
        )

    def read(self, start: int, stop: int) -> Pixels:
        with readable(self.info.path):
            block = np.asarray(self._array[self._layout.index(start, stop)])
        return native(self._layout.to_slices(block))

    def writer(
        self, info: VolumeInfo, folder: Path, dtype: np.dtype[Any], classes: int, resume: bool
    ) -> VolumeWriter:
        # OME's order of axes: channels before space.
        first = next(axis for axis in self._layout.axes if axis in "ZYX")
        layout = self._layout.with_classes(classes, before=first)
        added = layout.axes.index("C") if len(layout.axes) > len(self._layout.axes) else None
        metadata = self._array.metadata
        pixels = math.prod(layout.size) * layout.length("C") * dtype.itemsize
        depth = slab_depth(info.chunk, pixels)
        chunks = dict(zip(self._layout.axes, self._array.chunks, strict=True))
        shards = dict(zip(self._layout.axes, self._array.shards or (), strict=False))
        if depth < info.chunk:
            chunks["Z"], shards = min(chunks["Z"], depth), {}
        names = [axis.lower() for axis in layout.axes]
        v2 = metadata.zarr_format == 2
        attributes = {DIMENSIONS: names} if v2 and DIMENSIONS in self._array.attrs else {}
        encoding = (
            {"name": "v2", "separator": metadata.dimension_separator}
            if v2
            else metadata.chunk_key_encoding
        )
        groups = {}
        if self._multiscale is not None:
            labels = dtype == np.uint32
            groups[self._multiscale.group] = self._multiscale.attributes(
                self.dataset, added, labels
            )
        return ZarrWriter(
            folder / self.path.name,
            ZarrLayout(
                layout,
                self.dataset,
                dtype,
                tuple(chunks.get(axis, 1) for axis in layout.axes),
                tuple(shards.get(axis, 1) for axis in layout.axes) if shards else None,
                metadata.zarr_format,
                encoding,
                None if v2 else tuple(names),
                attributes,
                groups,
            ),
            depth,
            resume,
        )

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _node(self, inside: str) -> Any:
        return self._zarr.open(store=str(self.path), path=inside, mode="r")

    def _choose(self, inside: str) -> tuple[str, Multiscale | None]:
        """The array's path, and the image of OME's that it is a scale of."""
        node = None
        # Where nothing is, zarr raises one error or another, by format and version.
        with suppress(FileNotFoundError, KeyError, ValueError):
            node = self._node(inside)
        if node is None:
            root = self._node("")
            if isinstance(root, self._zarr.Array):
                raise UserError(
                    f"{self.path}: is one array ({shape_text(root.shape)}, {root.dtype}) and holds "
                    f"no others; leave {inside!r} out"
                )
            arrays = self._members(root)[0]
            raise UserError(f"{self.path}: has no array {inside!r}; it holds {list_arrays(arrays)}")
        if isinstance(node, self._zarr.Array):
            return inside, self._owner(inside)
        own = Multiscale.of(inside, node.attrs)
        if own is not None:
            return own.paths[0], own
        arrays, images = self._members(node, inside)
        if len(images) == 1:
            return images[0].paths[0], images[0]
        if images:
            names = ", ".join(image.group for image in images[:8])
            raise UserError(
                f"{self.path}: holds {len(images)} images ({names}); choose one, as in "
                f"{self.path.name}:{images[0].group}"
            )
        array = only_array(arrays, self.path)
        return array.path, None

    def _members(self, group: Any, inside: str = "") -> tuple[dict[str, Any], list[Multiscale]]:
        """Arrays that can be volumes and images of OME's in a group, by their path."""
        arrays, images = {}, []
        for name, node in sorted(group.members(max_depth=None), key=lambda member: member[0]):
            path = f"{inside}/{name}".strip("/")
            if not isinstance(node, self._zarr.Array):
                image = Multiscale.of(path, node.attrs)
                images += [image] if image is not None else []
            elif node.ndim >= 2 and node.dtype.kind in "buif":
                arrays[path] = node
        return arrays, images

    def _owner(self, inside: str) -> Multiscale | None:
        """The image that has the array at ``inside`` as one of its scales."""
        parts = inside.split("/")
        for depth in range(len(parts)):
            group = "/".join(parts[:depth])
            with suppress(FileNotFoundError, KeyError, ValueError):
                image = Multiscale.of(group, self._node(group).attrs)
                if image is not None and inside in image.paths:
                    return image
        return None

    def _axes(self) -> str | None:
        array = self._array
        if self._multiscale is not None:
            return self._multiscale.axes
        names = getattr(array.metadata, "dimension_names", None) or array.attrs.get(DIMENSIONS)
        if names:
            return named_axes(list(names))
        return "YX" if array.ndim == 2 else None
