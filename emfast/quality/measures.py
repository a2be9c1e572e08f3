"""What is measured of each image, and the scores that follow for sets of images.

An image is measured once; every score of a set is a function of its images' measures, so that
subsets, draws and other sets cost no network run.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfast.progress import progress
from emfast.quality.feature_distance import (
    diversity,
    frechet_distance,
    kernel_distance,
    manifold_scores,
)
from emfast.quality.features import FeatureNetwork, Features
from emfast.quality.grey import Counts, grey_distance, grey_histogram
from emfast.quality.mask_shape import Component, components, mask_statistics
from emfast.quality.overlap import Confusion, confusion
from emfast.quality.texture import (
    PATTERN_SCALES,
    Floats,
    pattern_histogram,
    radial_spectrum,
    spectrum_distance,
    total_variation,
)
from emfast.segmentation.segmenter import Segmenter
from engines.onnxruntime import cpu_count

Uint8 = npt.NDArray[np.uint8]

BATCH = 4


@dataclass(frozen=True)
class Measures:
    """What is measured of one image and its mask.

    Attributes:
        pixels: of the image.
        greys, object_greys: int64 (256,), grey levels of all pixels and of the object pixels.
        spectrum: as :func:`~emfast.quality.texture.radial_spectrum`.
        patterns: for each of :data:`~emfast.quality.texture.PATTERN_SCALES`, as
            :func:`~emfast.quality.texture.pattern_histogram`.
        components: objects of the mask.
        agreement: what an independent segmenter sees in the image, against the mask.
        features: of the frozen network.
    """

    pixels: int
    greys: Counts
    object_greys: Counts
    spectrum: Floats
    patterns: tuple[Floats, ...]
    components: tuple[Component, ...]
    agreement: Confusion
    features: Features

    @property
    def area_fraction(self) -> float:
        """Share of object pixels."""
        return float(self.object_greys.sum() / self.pixels)


def measure(
    images: Uint8, masks: Uint8, network: FeatureNetwork, segmenter: Segmenter, title: str
) -> list[Measures]:
    """Measure images and their masks.

    Args:
        images: uint8 (count, side, side), greys in [0, 255].
        masks: uint8, same shape, 0 background and 1 object.
        network: gives the features.
        segmenter: independent of the masks; its classes count as one.
        title: of the progress bar.
    """
    measured: list[Measures] = []
    with progress(title, len(images)) as advance, ThreadPoolExecutor(cpu_count()) as pool:
        for first in range(0, len(images), BATCH):
            part = slice(first, first + BATCH)
            measured += pool.map(
                _measure,
                images[part],
                masks[part],
                segmenter.segment(images[part]),
                network(images[part]),
            )
            advance(len(images[part]))
    return measured


def statistics(measures: Sequence[Measures]) -> dict[str, float | None]:
    """Scores of one set: those of its masks, agreement and diversity.

    Args:
        measures: of at least two images of one size.

    Returns:
        The scores of :func:`~emfast.quality.mask_shape.mask_statistics`, "dice" (pooled over all
        pixels), "dice_median" (of the images) and "diversity".
    """
    agreement = sum((m.agreement for m in measures), Confusion())
    return {
        **mask_statistics([m.components for m in measures], measures[0].pixels),
        "dice": agreement.dice,
        "dice_median": float(np.median([m.agreement.dice for m in measures])),
        "diversity": diversity(features(measures)),
    }


def distances(candidate: Sequence[Measures], reference: Sequence[Measures]) -> dict[str, float]:
    """Scores of one set against a real one.

    They depend on the number of images; compare them with those of as many real images only.

    Args:
        candidate, reference: of more than six images each.

    Returns:
        "frechet", "kernel", "precision", "recall", "density", "coverage", "spectrum" and
        "patterns_R" for each radius R of local binary patterns.
    """
    x, y = features(candidate), features(reference)
    scores = {
        "frechet": frechet_distance(x, y),
        "kernel": kernel_distance(x, y),
        **manifold_scores(x, y),
        "spectrum": spectrum_distance(mean_spectrum(candidate), mean_spectrum(reference)),
    }
    for i, (radius, _) in enumerate(PATTERN_SCALES):
        first, second = (
            np.mean([m.patterns[i] for m in measures], axis=0)
            for measures in (candidate, reference)
        )
        scores[f"patterns_{radius}"] = total_variation(first, second)
    return scores


def grey_distances(
    candidate: Sequence[Measures], greys: Counts, object_greys: Counts
) -> dict[str, float | None]:
    """Formula (2) of the seed paper for a set against the grey levels of a real one.

    Args:
        candidate: of at least one image.
        greys, object_greys: int64 (256,), of all and of the object pixels of the real set.

    Returns:
        "grey" over all pixels and "object_grey" over objects, in squared grey levels; None where a
        set has no object.
    """
    return {
        "grey": grey_distance(total_greys(candidate), greys),
        "object_grey": grey_distance(total_object_greys(candidate), object_greys),
    }


def features(measures: Sequence[Measures]) -> Features:
    """Features of a set, float32 (count, width)."""
    return np.stack([m.features for m in measures])


def mean_spectrum(measures: Sequence[Measures]) -> Floats:
    """Mean power spectrum of a set, float64 (side // 2,)."""
    spectrum: Floats = np.mean([m.spectrum for m in measures], axis=0)
    return spectrum


def total_greys(measures: Sequence[Measures]) -> Counts:
    """Grey levels of all pixels of a set, int64 (256,)."""
    counts: Counts = np.sum([m.greys for m in measures], axis=0, dtype=np.int64)
    return counts


def total_object_greys(measures: Sequence[Measures]) -> Counts:
    """Grey levels of all object pixels of a set, int64 (256,)."""
    counts: Counts = np.sum([m.object_greys for m in measures], axis=0, dtype=np.int64)
    return counts


def _measure(image: Uint8, mask: Uint8, seen: Uint8, vector: Features) -> Measures:
    return Measures(
        pixels=image.size,
        greys=grey_histogram(image),
        object_greys=grey_histogram(image, mask),
        spectrum=radial_spectrum(image),
        patterns=tuple(pattern_histogram(image, *scale) for scale in PATTERN_SCALES),
        components=components(mask),
        agreement=confusion(seen, mask),
        features=vector,
    )
