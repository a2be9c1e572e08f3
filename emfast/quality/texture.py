"""Texture of images: radial power spectra and local binary patterns."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from skimage.feature import local_binary_pattern

Uint8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

# Radius in pixels and number of neighbours: the first and last scale of Ojala et al. 2002.
PATTERN_SCALES = ((1, 8), (3, 24))


def radial_spectrum(image: Uint8) -> Floats:
    """Power of an image at each spatial frequency, averaged over directions.

    A Hann window keeps the image's edges out. White noise of variance v has power v everywhere.

    Args:
        image: uint8 (side, side), greys in [0, 255].

    Returns:
        float64 (side // 2,): at 1, 2, ... side // 2 periods a side, in squared grey levels.
    """
    window, radius = _window_and_radius(len(image))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 / np.sum(window**2)
    rings = len(image) // 2 + 1
    sums = np.bincount(radius.ravel(), weights=power.ravel())[:rings]
    spectrum: Floats = (sums / np.bincount(radius.ravel())[:rings])[1:]
    return spectrum


def decibels(spectrum: Floats, reference: Floats) -> Floats:
    """How far a spectrum lies above another at each frequency: 10 log10 of their ratio.

    Args:
        spectrum, reference: as from :func:`radial_spectrum`, or means of such.
    """
    tiny = np.finfo(np.float64).tiny
    above: Floats = 10 * (np.log10(spectrum.clip(min=tiny)) - np.log10(reference.clip(min=tiny)))
    return above


def spectrum_distance(first: Floats, second: Floats) -> float:
    """Root mean square, over all frequencies, of how many decibels two mean spectra differ."""
    return float(np.sqrt(np.mean(decibels(first, second) ** 2)))


def pattern_histogram(image: Uint8, radius: int, neighbours: int) -> Floats:
    """How often each uniform local binary pattern occurs (Ojala et al. 2002).

    A pattern tells which neighbours on a circle are at least as bright as the pixel in its middle,
    whatever the circle is turned by; the rare patterns with more than two changes around the
    circle share one bin. Brightness and contrast have no part in it.

    Args:
        image: uint8 (height, width), greys in [0, 255].
        radius: of the circle, in pixels.
        neighbours: number of points on it.

    Returns:
        float64 (neighbours + 2,), shares that sum to 1.
    """
    patterns = local_binary_pattern(image, neighbours, radius, method="uniform")
    counts = np.bincount(patterns.astype(np.intp).ravel(), minlength=neighbours + 2)
    shares: Floats = counts / counts.sum()
    return shares


def total_variation(first: Floats, second: Floats) -> float:
    """Half the sum of the differences of two histograms of shares, 0 (equal) to 1 (disjoint)."""
    return float(np.abs(first - second).sum() / 2)


@lru_cache(maxsize=1)
def _window_and_radius(side: int) -> tuple[Floats, npt.NDArray[np.intp]]:
    hann = np.hanning(side + 1)[:side]
    frequency = np.fft.fftfreq(side, 1 / side)
    radius = np.rint(np.hypot(frequency[:, None], frequency)).astype(np.intp)
    return np.outer(hann, hann), radius
