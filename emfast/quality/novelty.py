"""Finding, for an image, the most similar place in real slices: has it been copied?

Every place of every slice is tried, in the 8 flips and quarter turns that a training may draw from.
Similarity is the normalised cross-correlation (the correlation coefficient of the grey levels), in
[-1, 1], which no change of brightness or contrast affects.

The search has two passes. The first finds candidates on images reduced to about 32 pixels a side,
by the fast Fourier transform (Lewis, Fast normalized cross-correlation, 1995). The second measures
the best of them at full resolution, after smoothing that removes the microscope's noise, which
would hide a copy with other noise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import gaussian_filter

from emfast.progress import Advance, progress
from emfast.training.batches import flip_turn
from engines.onnxruntime import cpu_count

Uint8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

# What undoes each of the 8 symmetries of flip_turn: turns back, and each flip undoes itself.
INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
# Side of the images in the first pass, and how many candidates the second measures.
COARSE_SIDE = 32
CANDIDATES = 5
# Smoothing in the second pass: a deviation of 2 pixels for images of 256.
SMOOTHING = 1 / 128
# Spectra that are correlated with a slice at once: few enough to stay in a processor's cache.
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Match:
    """The most similar place of an image in real slices.

    Attributes:
        similarity: correlation coefficient there, in [-1, 1].
        slice: index of the slice.
        y, x: top left corner of the window, in slice pixels.
        symmetry: number by which :func:`~emfast.training.batches.flip_turn` brings the window
            into the image's orientation.
    """

    similarity: float
    slice: int
    y: int
    x: int
    symmetry: int

    def window(self, image: Uint8, side: int) -> Uint8:
        """Cut the place out of its slice, in the orientation of the image that it is similar to.

        Args:
            image: the slice or its mask, uint8 (height, width).
            side: of the image, in pixels.
        """
        return flip_turn(image[self.y : self.y + side, self.x : self.x + side], self.symmetry)


class PlaceSearch:
    """Real slices, prepared to be searched for many images, some at a time.

    A context manager: leaving it ends its threads.

    Args:
        read_slice: gives a slice by its index, uint8 (height, width), not smaller than the images.
        slices: number of slices.
        side: of the images, in pixels.
    """

    def __init__(self, read_slice: Callable[[int], Uint8], slices: int, side: int) -> None:
        self.slices, self.side = slices, side
        self._factor = max(1, side // COARSE_SIDE)
        self._read_slice, self._lock = read_slice, Lock()
        self._pool = ThreadPoolExecutor(cpu_count())
        self._planes = list(self._pool.map(self._coarse_plane, range(slices)))

    def find(
        self,
        tiles: Uint8,
        allowed: npt.NDArray[np.bool_] | None = None,
        title: str | None = None,
    ) -> list[Match]:
        """Find the most similar place of each image.

        Args:
            tiles: uint8 (count, side, side), greys in [0, 255].
            allowed: bool (count, slices), where to look for each image, at least one slice each;
                everywhere by default.
            title: of the progress bar; none by default.

        Returns:
            The match of each image.
        """
        todo = self._candidates(tiles, allowed, title)

        def measure(index: int) -> list[tuple[int, Match]]:
            image = _smooth(self._read(index), self.side * SMOOTHING)
            return [
                (c.tile, _measure(tiles[c.tile], image, index, c, self._factor))
                for c in todo[index]
            ]

        best_matches: dict[int, Match] = {}
        with _bar(title and "measuring their similarity", len(todo)) as advance:
            for found in self._pool.map(measure, todo):
                for tile, match in found:
                    known = best_matches.get(tile)
                    if known is None or match.similarity > known.similarity:
                        best_matches[tile] = match
                advance()
        return [best_matches[tile] for tile in range(len(tiles))]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _candidates(
        self, tiles: Uint8, allowed: npt.NDArray[np.bool_] | None, title: str | None
    ) -> dict[int, list[_Candidate]]:
        """The first pass: the best places of each image, by their slice."""
        todo: dict[int, list[_Candidate]] = defaultdict(list)
        chunk = max(1, CHUNK_BYTES // (8 * max(plane.spectrum.nbytes for plane in self._planes)))
        with _bar(title, len(tiles)) as advance:
            for first in range(0, len(tiles), chunk):
                part = range(first, min(first + chunk, len(tiles)))
                variants = self._pool.map(lambda i: _variants(tiles[i], self._factor), part)
                scores, places = _correlate_all(
                    np.concatenate(list(variants)), self._planes, self._pool
                )
                if allowed is not None:
                    scores[~allowed[part.start : part.stop]] = -np.inf
                for tile, tile_scores, tile_places in zip(part, scores, places, strict=True):
                    for best in np.argsort(tile_scores.ravel())[::-1][:CANDIDATES]:
                        index, variant = divmod(int(best), len(INVERSE))
                        if np.isfinite(tile_scores[index, variant]):
                            y, x = tile_places[index, variant] * self._factor
                            todo[index].append(_Candidate(tile, variant, int(y), int(x)))
                advance(len(part))
        return todo

    def _coarse_plane(self, index: int) -> _Plane:
        return _plane(_reduce(self._read(index), self._factor), self.side // self._factor)

    def _read(self, index: int) -> Uint8:
        with self._lock:  # a TIFF's pages share one file position
            return self._read_slice(index)


def find_matches(
    tiles: Uint8,
    read_slice: Callable[[int], Uint8],
    slices: int,
    allowed: npt.NDArray[np.bool_] | None = None,
    title: str = "searching copies",
) -> list[Match]:
    """Find the most similar place of each image.

    Args:
        tiles: uint8 (count, side, side), greys in [0, 255].
        read_slice, slices: as for :class:`PlaceSearch`.
        allowed: as for :meth:`PlaceSearch.find`.
        title: of the progress bar.

    Returns:
        The match of each image.
    """
    with PlaceSearch(read_slice, slices, tiles.shape[1]) as search:
        return search.find(tiles, allowed, title)


def far_slices(own: npt.NDArray[np.intp], slices: int) -> npt.NDArray[np.bool_]:
    """The slices at least a third of the stack away from each tile's own.

    Args:
        own: the slice of each tile, int (count,).
        slices: number of slices, at least 2.

    Returns:
        bool (count, slices), with at least one slice for each tile.
    """
    distance = np.abs(own[:, None] - np.arange(slices))
    far: npt.NDArray[np.bool_] = distance >= max(1, slices // 3)
    return far


def similarity(first: Uint8, second: Uint8) -> float:
    """Correlation coefficient of two images as they lie, smoothed as in :func:`find_matches`.

    Args:
        first, second: uint8 (side, side), greys in [0, 255].

    Returns:
        In [-1, 1]; 0 where an image is of one grey level.
    """
    sigma = len(first) * SMOOTHING
    a, b = (_standardise(_smooth(image, sigma)) for image in (first, second))
    return float(np.sum(a * b, dtype=np.float64))


class _Candidate(NamedTuple):
    """Where the first pass found a tile, turned by a symmetry, in some slice."""

    tile: int
    variant: int
    y: int
    x: int


class _Plane(NamedTuple):
    """An image to search: its spectrum, and 1 / (norm of its deviations) of each window."""

    spectrum: npt.NDArray[np.complex64]
    shape: tuple[int, int]
    inverse_norms: Float32


def _bar(title: str | None, total: int) -> AbstractContextManager[Advance]:
    """A progress bar, or without a title nothing that is shown."""
    return progress(title, total) if title else nullcontext(_no_advance)


def _no_advance(steps: int = 1, note: str = "") -> None:
    pass


def _measure(tile: Uint8, image: Float32, index: int, place: _Candidate, factor: int) -> Match:
    """Measure a tile's similarity around a place of a smoothed slice, at full resolution."""
    side = len(tile)
    template = _standardise(_smooth(flip_turn(tile, place.variant), side * SMOOTHING))
    top, left = (max(0, start - factor) for start in (place.y, place.x))
    bottom, right = (start + side + factor for start in (place.y, place.x))
    plane = _plane(image[top:bottom, left:right], side)
    spectrum = np.conj(fft.rfft2(template[None], plane.shape))
    (value,), ((y, x),) = _best(spectrum, plane)
    return Match(float(value), index, top + int(y), left + int(x), INVERSE[place.variant])


def _plane(image: Float32, side: int) -> _Plane:
    """Prepare an image, float32 (height, width), for windows of ``side``."""
    shape = tuple(fft.next_fast_len(length, real=True) for length in image.shape)
    centred = image - image.mean()
    sums, squares = (_window_sums(values, side) for values in (centred, centred**2))
    deviations = squares - sums**2 / side**2
    # A window of one grey level is similar to nothing.
    flat = deviations < 1e-3 * side**2
    inverse = np.where(flat, 0, 1 / np.sqrt(np.where(flat, 1, deviations)))
    return _Plane(fft.rfft2(centred, shape), shape, inverse.astype(np.float32))


def _window_sums(values: Float32, side: int) -> npt.NDArray[np.float64]:
    table = np.pad(values.astype(np.float64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    below, above = table[side:], table[:-side]
    sums: npt.NDArray[np.float64] = (
        below[:, side:] - below[:, :-side] - above[:, side:] + above[:, :-side]
    )
    return sums


def _variants(tile: Uint8, factor: int) -> Float32:
    """A tile in its 8 symmetries, reduced and standardised: float32 (8, side, side)."""
    turned = [flip_turn(tile, symmetry) for symmetry in range(len(INVERSE))]
    return np.stack([_standardise(_reduce(variant, factor)) for variant in turned])


def _correlate_all(
    templates: Float32, planes: list[_Plane], pool: ThreadPoolExecutor
) -> tuple[Float32, npt.NDArray[np.intp]]:
    """Correlate the 8 variants of each tile with every plane.

    Returns:
        The best value, float32 (tiles, planes, 8), and its place, int (tiles, planes, 8, 2).
    """
    spectra = {
        shape: np.conj(fft.rfft2(templates, shape)) for shape in {plane.shape for plane in planes}
    }
    found = pool.map(lambda plane: _best(spectra[plane.shape], plane), planes)
    values, places = (np.stack(arrays, axis=1) for arrays in zip(*found, strict=True))
    count = len(templates) // len(INVERSE)
    return (
        values.reshape(count, len(INVERSE), -1).swapaxes(1, 2),
        places.reshape(count, len(INVERSE), -1, 2).swapaxes(1, 2),
    )


def _best(
    spectra: npt.NDArray[np.complex64], plane: _Plane
) -> tuple[Float32, npt.NDArray[np.intp]]:
    """The largest correlation of each template in a plane, and its place.

    Args:
        spectra: complex64 (templates, ...), conjugate spectra of standardised templates.

    Returns:
        float32 (templates,), and int (templates, 2), y and x.
    """
    products = fft.irfft2(spectra * plane.spectrum, plane.shape, overwrite_x=True)
    height, width = plane.inverse_norms.shape
    # Places further down or right would wrap around the image's edge.
    maps = (products[:, :height, :width] * plane.inverse_norms).reshape(len(spectra), -1)
    places = maps.argmax(axis=1)
    values = np.take_along_axis(maps, places[:, None], axis=1)[:, 0]
    return values, np.stack(np.unravel_index(places, (height, width)), axis=-1)


def _standardise(image: Float32) -> Float32:
    """Mean 0 and norm 1; an image of one grey level becomes 0."""
    centred = image - image.mean()
    norm = float(np.linalg.norm(centred))
    return centred / norm if norm > 1e-3 * image.size**0.5 else np.zeros_like(centred)


def _smooth(image: Uint8, sigma: float) -> Float32:
    smoothed: Float32 = gaussian_filter(image.astype(np.float32), sigma)
    return smoothed


def _reduce(image: Uint8, factor: int) -> Float32:
    """Smooth an image and average blocks of ``factor`` pixels a side; a rest is left out.

    The smoothing makes the result nearly the same wherever a block begins, so that places between
    the blocks are found too.
    """
    height, width = (length // factor for length in image.shape)
    smoothed = _smooth(image, factor / 2)[: height * factor, : width * factor]
    means: Float32 = smoothed.reshape(height, factor, width, factor).mean(axis=(1, 3))
    return means
