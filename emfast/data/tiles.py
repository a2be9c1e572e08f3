"""Cutting square tiles from a stack, at full and at reduced scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.data.image import Grey
from emfast.data.stack import Stack
from engines.errors import UserError

# The paper's recipe: 256 x 256 tiles at stride 128, and 512 x 512 ones at stride 256 reduced to
# 256 x 256. A slice of 1024 x 768 pixels gives 35 + 6.
PAPER_SIZE = 256
PAPER_WINDOWS = ((256, 128), (512, 256))


@dataclass(frozen=True)
class Window:
    """A square part of a slice: its top left corner and its side, in slice pixels."""

    y: int
    x: int
    size: int


@dataclass(frozen=True)
class Tile:
    """Where a tile came from: the slice's index in its stack and the window, in slice pixels."""

    slice: int
    y: int
    x: int
    size: int


@dataclass(frozen=True)
class Tiles:
    """Square tiles of one size, with or without masks.

    Attributes:
        images: uint8 (tiles, size, size), greys in [0, 255].
        masks: uint8 of the same shape, 0 background and 1 object, or None.
        origins: where each tile came from.
    """

    images: Grey
    masks: Grey | None
    origins: tuple[Tile, ...]

    def __len__(self) -> int:
        return len(self.images)

    def stack(self) -> Stack:
        """The tiles as a stack of their own, for training."""
        names = tuple(f"{t.slice:04d}_y{t.y}_x{t.x}_{t.size}" for t in self.origins)
        return Stack(self.images, self.masks, names, "tiles")


def tile_windows(height: int, width: int, size: int = 256, stride: int = 128) -> list[Window]:
    """All windows on a regular grid that lie fully inside a slice, row by row.

    Args:
        height: of the slice, in pixels.
        width: of the slice, in pixels.
        size: side of a window, in pixels.
        stride: distance between neighbouring windows, in pixels.

    Raises:
        UserError: a size or stride below 1, or windows larger than the slice.
    """
    if size < 1 or stride < 1:
        raise UserError(f"tiles of {size} pixels at stride {stride}: both must be at least 1")
    if size > min(height, width):
        raise UserError(
            f"tiles of {size} x {size} pixels do not fit into slices of {width} x {height}; "
            f"the largest possible size is {min(height, width)}"
        )
    return [
        Window(y, x, size)
        for y in range(0, height - size + 1, stride)
        for x in range(0, width - size + 1, stride)
    ]


def random_place(length: int, size: int, rng: np.random.Generator) -> int:
    """First pixel of a random tile along an axis of a slice.

    Places reach beyond the border, and tiles there are moved back inside: pixels at the border are
    in about half as many tiles as others, where uniform places would leave them in next to none.
    About a third of the tiles at most lie at an edge: small slices are not cut into the same few.

    Args:
        length: of the axis, in pixels.
        size: of the tile, at most ``length``.
        rng: source of the choice.
    """
    beyond = _beyond(length, size)
    place = int(rng.integers(length - size + 2 * beyond + 1)) - beyond
    return min(max(place, 0), length - size)


def place_counts(length: int, size: int) -> npt.NDArray[np.int64]:
    """How often :func:`random_place` gives each place, relative to the one least frequent.

    Returns:
        int64 (length - size + 1,).
    """
    counts = np.ones(length - size + 1, np.int64)
    counts[[0, -1]] += _beyond(length, size)
    return counts


def _beyond(length: int, size: int) -> int:
    """By how many pixels places of tiles reach beyond each end of an axis."""
    return min(size // 2, (length - size) // 4)


def paper_windows(height: int, width: int) -> list[Window]:
    """The paper's windows: 256 x 256 at stride 128, then 512 x 512 at stride 256.

    Raises:
        UserError: slices smaller than 512 x 512 pixels.
    """
    return [
        window
        for size, stride in PAPER_WINDOWS
        for window in tile_windows(height, width, size, stride)
    ]


def cut_tiles(stack: Stack, windows: Sequence[Window], size: int = 256) -> Tiles:
    """Cut the same windows from every slice.

    Args:
        stack: slices with or without masks.
        windows: which parts of a slice; larger ones than ``size`` are reduced to it.
        size: side of the tiles, in pixels.

    Returns:
        The tiles of the first slice in the order of ``windows``, then those of the next.

    Raises:
        UserError: no windows, windows that leave the slice or are smaller than ``size``.
    """
    if not windows:
        raise UserError("no windows to cut; give at least one")
    height, width = stack.images.shape[1:]
    for window in windows:
        if not (0 <= window.y <= height - window.size and 0 <= window.x <= width - window.size):
            raise UserError(f"{window} does not lie inside slices of {width} x {height} pixels")
        if window.size < size:
            raise UserError(f"{window} is smaller than the tiles, {size}; choose smaller tiles")
    origins = tuple(Tile(i, w.y, w.x, w.size) for i in range(len(stack)) for w in windows)
    images = np.stack([reduce_image(_part(stack.images, tile), size) for tile in origins])
    masks = None
    if stack.masks is not None:
        masks = np.stack([reduce_mask(_part(stack.masks, tile), size) for tile in origins])
    return Tiles(images, masks, origins)


def reduce_image(image: Grey, size: int) -> Grey:
    """Reduce a square image by averaging over areas.

    Args:
        image: uint8 (side, side), side at least ``size``.
        size: side of the result.

    Returns:
        uint8 (size, size).
    """
    if image.shape == (size, size):
        return image
    return np.rint(_area_means(image, size)).astype(np.uint8)


def reduce_mask(mask: Grey, size: int) -> Grey:
    """Reduce a square mask: a pixel is object where at least half of its area is.

    The areas are those that :func:`reduce_image` averages over, so mask and image stay aligned.
    Nearest-neighbour reduction would take one corner of each area and shift the mask by half a
    pixel against the image.

    Args:
        mask: uint8 (side, side) of 0 and 1, side at least ``size``.
        size: side of the result.

    Returns:
        uint8 (size, size) of 0 and 1.
    """
    if mask.shape == (size, size):
        return mask
    return (_area_means(mask, size) >= 0.5).astype(np.uint8)


def _area_means(square: Grey, size: int) -> npt.NDArray[np.float32]:
    # In 8 bits Pillow rounds upwards after each axis, which brightens by half a level.
    picture = Image.fromarray(square.astype(np.float32))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def _part(slices: Grey, tile: Tile) -> Grey:
    return slices[tile.slice, tile.y : tile.y + tile.size, tile.x : tile.x + tile.size]
