"""Numbering the objects of masks that were written, in files of the same layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emfast.progress import progress
from emfast.segmentation.instances import Method, check, load
from emfast.segmentation.preprocessing import SegmenterSpec
from emfast.segmentation.slabs import SLAB, InstanceLabeler
from emfast.volumes import VolumeInfo, VolumeReader, create_like, open_volume
from engines.errors import UserError


def check_instances(info: VolumeInfo, spec: SegmenterSpec, method: Method, min_voxels: int) -> None:
    """:class:`UserError` for what cannot be numbered; before hours of segmenting, not after."""
    check(method, min_voxels)
    for module in ("cc3d", "fastremap", "scipy.sparse"):
        load(module)
    if method.startswith("watershed"):
        load("skimage.segmentation")
    if spec.classes > 1:
        raise UserError(
            f"instances of {spec.classes} classes would run into each other; number the objects "
            "of a model of one class"
        )
    if info.size is None and not method.endswith("2d"):
        raise UserError(
            f"{info.path}: slices differ in size, so that {method} has no volume to look at; give "
            "components2d or watershed2d"
        )


def write_labels(
    reader: VolumeReader,
    masks: Path,
    out: Path,
    method: Method,
    min_voxels: int,
    fill_holes: bool,
    known: int | None = None,
) -> tuple[Path, int]:
    """Number the objects of masks.

    Args:
        reader: of the volume, for the layout.
        masks: as they were written.
        out: the folder in which ``labels/`` is made.
        method, min_voxels, fill_holes: as for
            :func:`~emfast.segmentation.instances.label_instances`.
        known: number of objects where an earlier run wrote them from the same masks.

    Returns:
        The file or folder of labels, uint32, and the number of objects.
    """
    info, voxel = reader.info, reader.info.voxel
    y = voxel.y or 1.0
    spacing = (voxel.z or y, y, voxel.x or y)
    writer = create_like(info, reader, out, name="labels", dtype=np.dtype(np.uint32))
    if known is not None and writer.path.exists():
        return writer.path, known
    slab = 1 if info.size is None else max(SLAB // info.chunk, 1) * info.chunk
    labeler = InstanceLabeler(method, min_voxels, fill_holes, spacing, slab)
    with (
        open_volume(masks, axes=_axes(info)) as written,
        writer,
        progress("instances", info.slices * labeler.readings) as advance,
    ):
        # MRC stores masks as 16 bits.
        count = labeler.label(
            info.slices, lambda start, stop: written.read(start, stop) != 0, writer.write, advance
        )
    return writer.path, count


def _axes(info: VolumeInfo) -> str | None:
    """Axes of the masks where their format cannot name them."""
    return None if info.format == "images" else info.axes
