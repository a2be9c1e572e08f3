"""A small set, real slices and a segmenter to select with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.selection import write_samples
from tests.bundles import write_segmenter_bundle
from tests.emfast.quality.sets_of_blobs import cut, stack, write_set

COUNT = 20


@dataclass(frozen=True)
class Small:
    """Paths of a set of 20 images of 48 x 48 pixels, 6 real slices, and a segmenter bundle."""

    drawn: Path
    real: Path
    segmenter: Path


def write_small(folder: Path, count: int = COUNT) -> Small:
    """Write everything; images 3 and 7 have a speck, image 5 has a hole, image 9 is a copy."""
    real = stack(6)
    write_set(folder / "real", *real)
    images, masks = cut(*stack(seed=50), count)
    images[9 % count] = real[0][4, 10:58, 20:68]
    masks[9 % count] = real[1][4, 10:58, 20:68]
    for index in (3, 7):
        clear = np.argwhere(~dilated(masks[index])[4:-4, 4:-4])[0] + 4
        masks[index, clear[0], clear[1]] = 1
    masks[5, 10:40, 10:40] = 1
    masks[5, 20, 20] = 0
    write_samples(folder / "drawn", list(zip(images, masks, strict=True)))
    segmenter = write_segmenter_bundle(folder / "segmenter", threshold=0.9)
    return Small(folder / "drawn", folder / "real", segmenter)


def dilated(mask: np.ndarray) -> np.ndarray:
    """Where a mask has an object within a pixel."""
    padded = np.pad(mask > 0, 1)
    height, width = mask.shape
    shifts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.any(shifts, axis=0)
