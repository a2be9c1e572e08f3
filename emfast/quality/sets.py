"""Reading sets of labelled images for comparison, and dealing real tiles into disjoint parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emfast.data.image import Grey, size_text, to_mask
from emfast.data.slices import Slices, open_slices
from emfast.data.stack import find_sources
from emfast.data.tiles import Tile, Tiles, place_counts, tile_windows
from emfast.progress import progress
from emfast.quality.grey import LEVELS, Counts, grey_histogram
from engines.errors import UserError

# Blocks of consecutive slices that are dealt to two parts.
BLOCKS = 16


@dataclass(frozen=True)
class LabelledSlices:
    """Images with masks, decoded when they are asked for.

    Attributes:
        source: where they are.
        names: one name an image, without suffix.
    """

    source: Path
    names: tuple[str, ...]
    _images: Slices
    _masks: Slices
    _mask_index: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def files(self) -> tuple[Path, ...]:
        """The files of all images and their masks, each once."""
        masks = (self._masks.files[index] for index in self._mask_index)
        return tuple(dict.fromkeys((*self._images.files, *masks)))

    def image(self, index: int) -> Grey:
        """Decode one image: uint8 (height, width), greys in [0, 255]."""
        return self._images.read(index)

    def mask(self, index: int) -> Grey:
        """Decode one mask: uint8 (height, width), 0 background and 1 object."""
        name = f"{self.source}, mask {self.names[index]}"
        return to_mask(self._masks.read(self._mask_index[index]), name)

    def pair(self, index: int) -> tuple[Grey, Grey]:
        """Decode an image and its mask; :class:`UserError` where they differ in size."""
        image, mask = self.image(index), self.mask(index)
        if image.shape != mask.shape:
            raise UserError(
                f"{self.source}, {self.names[index]}: the image is {size_text(image)} pixels, but "
                f"its mask is {size_text(mask)}"
            )
        return image, mask


@contextmanager
def open_labelled(source: Path) -> Iterator[LabelledSlices]:
    """Open a set of images and masks, such as a stack or what ``emfast generate`` wrote.

    Args:
        source: a folder that :func:`emfast.data.stack.read_stack` reads with masks. Masks in a
            folder are matched by name, those in a TIFF in order.

    Raises:
        UserError: nothing there, no masks, or images without a mask.
    """
    if not source.exists():
        raise UserError(f"{source}: no such folder")
    images_source, masks_source = find_sources(source)
    if masks_source is None:
        raise UserError(
            f"{source}: has no masks; give a folder with images/ and masks/, or with EPFL's "
            "training.tif and training_groundtruth.tif"
        )
    with ExitStack() as stack:
        images = stack.enter_context(open_slices(images_source))
        masks = stack.enter_context(open_slices(masks_source))
        if images_source.is_dir() and masks_source.is_dir():
            index = {name: i for i, name in enumerate(masks.names)}
            missing = sorted(set(images.names) - set(index))
            if missing:
                raise UserError(
                    f"{masks_source}: no mask for {missing[0]}; {len(missing)} of {len(images)} "
                    "images have none"
                )
            order = tuple(index[name] for name in images.names)
        elif len(images) == len(masks):
            order = tuple(range(len(images)))
        else:
            raise UserError(
                f"{masks_source}: {len(masks)} masks, but {images_source} has {len(images)} slices"
            )
        yield LabelledSlices(source, tuple(images.names), images, masks, order)


def read_even(slices: LabelledSlices, limit: int) -> Tiles:
    """Read images of one square size, at most ``limit`` of them, evenly over the set.

    Raises:
        UserError: images that are not square, or of different sizes.
    """
    indices = _spread(len(slices), limit)
    pairs = []
    with progress("reading the synthetic set", len(indices)) as advance:
        for index in indices:
            pairs.append(slices.pair(index))
            _check_square(slices, index, pairs)
            advance()
    images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    origins = tuple(Tile(index, 0, 0, images.shape[1]) for index in indices)
    return Tiles(images, masks, origins)


@dataclass(frozen=True)
class RealSet:
    """What a report takes from the real slices.

    Attributes:
        tiles: drawn at random places, as many from each slice.
        pixels: of all slices.
        greys: int64 (256,), grey levels of all tiles that could be drawn: each pixel counts as
            often as it would be in one.
        object_greys: those of the object pixels.
    """

    tiles: Tiles
    pixels: int
    greys: Counts
    object_greys: Counts


def read_real(
    slices: LabelledSlices, size: int, count: int, seed: int, border: bool = True
) -> RealSet:
    """Draw tiles from real slices, and count the grey levels of all that could be drawn.

    Args:
        slices: the real set.
        size: side of the tiles, in pixels.
        count: at least so many tiles, from each slice as many, but no more than lie on a grid with
            half a tile's stride. Of more slices than ``count``, so many are taken evenly.
        seed: of the places.
        border: whether tiles reach the border as those of
            :func:`emfast.data.tiles.random_place` do; all places inside are alike otherwise.

    Raises:
        UserError: tiles that do not fit, or fewer than two slices.
    """
    if len(slices) < 2:
        raise UserError(
            f"{slices.source}: holds one image; at least two are needed to compare real with real"
        )
    rng = np.random.default_rng(seed)
    chosen = set(_spread(len(slices), count))
    per_slice = -(-count // len(chosen))
    greys, object_greys = np.zeros(LEVELS, np.int64), np.zeros(LEVELS, np.int64)
    images, masks, origins = [], [], []
    pixels = 0
    with progress("reading the real set", len(slices)) as advance:
        for index in range(len(slices)):
            image, mask = slices.pair(index)
            height, width = image.shape
            # Refuses slices that are smaller than the tiles.
            most = len(tile_windows(height, width, size, max(1, size // 2)))
            places = [_place_counts(length, size, border) for length in (height, width)]
            weights = np.outer(*(np.convolve(n, np.ones(size, np.int64)) for n in places))
            greys += grey_histogram(image, weights=weights)
            object_greys += grey_histogram(image, mask, weights)
            pixels += image.size
            if index in chosen:
                counts = np.outer(*places).ravel()
                shares = counts / counts.sum() if border else None
                drawn = rng.choice(len(counts), min(per_slice, most), replace=False, p=shares)
                for y, x in (divmod(int(n), width - size + 1) for n in np.sort(drawn)):
                    images.append(image[y : y + size, x : x + size])
                    masks.append(mask[y : y + size, x : x + size])
                    origins.append(Tile(index, y, x, size))
            advance()
    tiles = Tiles(np.stack(images), np.stack(masks), tuple(origins))
    return RealSet(tiles, pixels, greys, object_greys)


def split_interleaved(
    slices: npt.NDArray[np.intp], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Deal tiles to two disjoint parts that cover the same depths of a stack.

    The slices are cut into :data:`BLOCKS` blocks of consecutive ones, fewer where there are fewer
    slices, and of every two neighbouring blocks one goes to either part at random.

    Args:
        slices: the slice of each tile, int (tiles,).
        rng: source of the choices.

    Returns:
        bool (tiles,): True for the first part.
    """
    present = np.unique(slices)
    pairs = min(BLOCKS, len(present)) // 2
    first = rng.integers(0, 2, pairs)
    side = np.stack([first, 1 - first], axis=1).ravel()
    blocks = np.array_split(present, 2 * pairs)
    chosen = [block for block, value in zip(blocks, side, strict=True) if value]
    return np.isin(slices, np.concatenate(chosen))


def split_halves(slices: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Split tiles at the middle of a stack: True, bool (tiles,), for those of the first half."""
    present = np.unique(slices)
    first: npt.NDArray[np.bool_] = slices < present[len(present) // 2]
    return first


def _place_counts(length: int, size: int, border: bool) -> Counts:
    """How often a tile begins at each place of an axis, int64 (length - size + 1,)."""
    return place_counts(length, size) if border else np.ones(length - size + 1, np.int64)


def _spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of the numbers from 0 to ``count - 1``, evenly."""
    if count <= limit:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def _check_square(slices: LabelledSlices, index: int, pairs: list[tuple[Grey, Grey]]) -> None:
    first, image = pairs[0][0], pairs[-1][0]
    if image.shape[0] != image.shape[1] or image.shape != first.shape:
        raise UserError(
            f"{slices.source}, {slices.names[index]}: is {size_text(image)} pixels, and the first "
            f"image {size_text(first)}; a report compares square images of one size. Cut them "
            "first: emfast data tiles"
        )
