"""Telling the objects of a mask apart: connected components or watershed, in 2D or in 3D.

Voxels that share a face, an edge or a corner belong together (8 neighbours in 2D, 26 in 3D), and
correspondingly a hole is background that no path of shared faces joins to the border of the slice
(2D) or of the volume (3D). ``slabs.py`` does the same with bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

Method = Literal["components2d", "components3d", "watershed2d", "watershed3d"]
Uint8 = npt.NDArray[np.uint8]
Uint32 = npt.NDArray[np.uint32]
Bool = npt.NDArray[np.bool_]
METHODS: tuple[Method, ...] = get_args(Method)
MOST_LABELS = np.iinfo(np.uint32).max
# A watershed cuts an object at a neck narrower than this share of the narrower part beside it.
# The distances of a pixel grid alone make steps of 0.71 (1 to the square root of 2).
NECK = 0.7
PACKAGES = {
    "cc3d": "connected-components-3d",
    "fastremap": "fastremap",
    "scipy": "scipy",
    "skimage": "scikit-image",
}


def label_instances(
    mask: Bool | Uint8,
    *,
    method: Method,
    min_voxels: int = 0,
    fill_holes: bool = False,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Uint32:
    """Give each object of a mask a number.

    - ``components2d``: connected components of each slice by itself.
    - ``components3d``: connected components of the volume.
    - ``watershed2d``, ``watershed3d``: components, cut at their necks. The basins are those of the
      distance to the nearest voxel outside the object or the volume. Two parts are cut where the
      neck between them is narrower than :data:`NECK` times the narrower part; so a small object is
      judged as a large one. They are the extended maxima of the logarithm of the distance
      (h-maxima, Soille, Morphological Image Analysis, 2003, 6.3.5, with h = -log NECK).

    The whole volume is in memory: 11 bytes a voxel at the peak beside the mask. A watershed in
    3D takes 100 bytes for each voxel of the bounding box of the largest object as well, and that
    may be the whole volume.

    Args:
        mask: bool or uint8 (slices, height, width); not 0 is object.
        method: one of :data:`METHODS`.
        min_voxels: smaller objects are left out; for a watershed, smaller parts of objects.
        fill_holes: whether to fill holes first, in 2D for the methods of 2D.
        spacing: of voxels along slices, rows and columns, in any unit, for the distance.

    Returns:
        uint32 of the same shape: 0 for background, and for the objects 1 to their number in the
        order of their first voxels, slice by slice and row by row.

    Raises:
        UserError: an unknown method, an array of another kind, a negative ``min_voxels``, or a
            package of the extra ``labels`` is missing.
    """
    check(method, min_voxels)
    foreground = check_mask(mask)
    if method in ("components3d", "watershed3d"):
        return _label(foreground, method, min_voxels, fill_holes, spacing)
    labels: Uint32 = np.zeros(foreground.shape, dtype=np.uint32)
    found = 0
    for index, plane in enumerate(foreground):
        one = _label(plane, method, min_voxels, fill_holes, spacing[1:])
        found += place(one, found, labels[index])
    return labels


def place(labels: Uint32, before: int, out: Uint32) -> int:
    """Copy labels 1..n to ``out`` as ``before`` + 1..n; returns n.

    Raises:
        UserError: more labels than uint32 holds.
    """
    count = int(labels.max(initial=0))
    check_count(before + count)
    np.add(labels, np.uint32(before), out=out, where=labels > 0)
    return count


def check(method: str, min_voxels: int) -> None:
    """:class:`UserError` for an unknown method or a negative number of voxels."""
    if method not in METHODS:
        raise UserError(f"unknown instance method {method!r}; accepted: {', '.join(METHODS)}")
    if min_voxels < 0:
        raise UserError(f"objects of at least {min_voxels} voxels asked for; give 0 or more")


def check_mask(mask: Bool | Uint8) -> Bool:
    """The mask as bool; :class:`UserError` for an array of another kind."""
    if mask.ndim != 3 or mask.dtype not in (np.bool_, np.uint8):
        raise UserError(
            f"mask is {mask.dtype} of shape {mask.shape}; expected bool or uint8 "
            "(slices, height, width)"
        )
    return mask.astype(np.bool_, copy=False)


def check_count(count: int) -> None:
    """:class:`UserError` for more objects than the labels have numbers."""
    if count > MOST_LABELS:
        raise UserError(f"{count} objects; labels of 32 bits hold {MOST_LABELS}, filter by size")


def load(module: str) -> Any:
    """A module of the extra ``labels``; :class:`UserError` says what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        package = PACKAGES[module.split(".", maxsplit=1)[0]]
        raise UserError(
            f"instance labels need {package}, which does not load ({error}): "
            "pip install 'emfast[labels]'"
        ) from None


def components(foreground: Bool) -> Uint32:
    """Connected components, 1..n in the order of their first voxels; bool in 2D or 3D."""
    connectivity = 26 if foreground.ndim == 3 else 8
    labels = load("cc3d").connected_components(
        np.ascontiguousarray(foreground), connectivity=connectivity, out_dtype=np.uint32
    )
    return in_order(labels)


def background(foreground: Bool) -> Uint32:
    """Components of the background, 1..n, joined by shared faces (edges in 2D); bool 2D or 3D."""
    connectivity = 6 if foreground.ndim == 3 else 4
    labels: Uint32 = load("cc3d").connected_components(
        np.ascontiguousarray(~foreground), connectivity=connectivity, out_dtype=np.uint32
    )
    return labels


def filled(foreground: Bool) -> Bool:
    """A slice or a volume with its holes filled; bool in 2D or 3D.

    fill_voids 2.1.2 fills some background at the border of a volume as well, and scipy's
    ``binary_fill_holes`` grows the background step by step.
    """
    labels = background(foreground)
    outside = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.bool_)
    for axis in range(labels.ndim):
        for end in (0, -1):
            outside[labels.take(end, axis=axis)] = True
    # 0 is foreground.
    outside[0] = False
    result: Bool = ~outside[labels]
    return result


def in_order(labels: Uint32) -> Uint32:
    """The same objects with the numbers 1..n in the order of their first voxels."""
    # cc3d numbers the components of a 2D bool array in another order.
    renumbered, _ = load("fastremap").renumber(np.ascontiguousarray(labels))
    ordered: Uint32 = renumbered.astype(np.uint32, copy=False)
    return ordered


def without_small(labels: Uint32, min_voxels: int) -> Uint32:
    """Labels 1..n without the objects below ``min_voxels``, numbered anew in the same order."""
    sizes = np.bincount(labels.ravel())
    keep = sizes >= min_voxels
    keep[0] = False
    if keep[1:].all():
        return labels
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.uint32)
    kept: Uint32 = numbers[labels]
    return kept


def _label(
    foreground: Bool, method: Method, min_voxels: int, fill_holes: bool, spacing: tuple[float, ...]
) -> Uint32:
    """As :func:`label_instances`, for one slice or one volume."""
    if fill_holes:
        foreground = filled(foreground)
    labels = components(foreground)
    if method.startswith("watershed"):
        labels = _cut(labels, spacing)
    return without_small(labels, min_voxels) if min_voxels > 1 else labels


def _cut(labels: Uint32, spacing: tuple[float, ...]) -> Uint32:
    """Cut each object at its necks; it is looked at in its bounding box alone."""
    find_objects: Callable[..., Any] = load("scipy.ndimage").find_objects
    boxes = list(enumerate(find_objects(labels), start=1))
    most = len(boxes)
    for label, box in boxes:
        part = labels[box]
        parts = _basins(part == label, spacing)
        count = int(parts.max())
        # The first part keeps the label of the object.
        check_count(most + count)
        np.add(parts, np.uint32(most - 1), out=part, where=parts > 1)
        most += count - 1
    return in_order(labels) if most > len(boxes) else labels


def _basins(one: Bool, spacing: tuple[float, ...]) -> Uint32:
    """The parts, from 1, of one connected object that fills its bounding box."""
    ndimage, morphology = load("scipy.ndimage"), load("skimage.morphology")
    inside = np.pad(one, 1)
    full = np.ones((3,) * one.ndim)
    distance = ndimage.distance_transform_edt(inside, sampling=spacing)
    lowest = min(spacing)
    with np.errstate(divide="ignore"):
        height = np.maximum(np.log(distance / lowest), -1.0).astype(np.float32)
    lowered = morphology.reconstruction(height + np.log(np.float32(NECK)), height, footprint=full)
    seeds = morphology.local_maxima(lowered, footprint=full) & inside
    markers, count = ndimage.label(seeds, structure=full)
    if count == 1:
        return one.astype(np.uint32)
    segmentation = load("skimage.segmentation")
    parts = segmentation.watershed(-distance, markers, connectivity=full, mask=inside)
    inner = tuple(slice(1, -1) for _ in range(one.ndim))
    result: Uint32 = parts[inner].astype(np.uint32)
    return result


def spans(slices: int, slab: int) -> Iterator[tuple[int, int]]:
    """First slice and end of each slab, in order."""
    return ((start, min(start + slab, slices)) for start in range(0, slices, slab))
