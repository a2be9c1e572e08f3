"""What a run wrote and found, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Entries of a slice's line that are counted over the volume, and what they tell.
COUNTED = {
    "invalid": "NaN or infinite: left out of the statistics, mask 0 there",
    "clipped": "far outside the others: clipped",
    "blank": "of one grey: nothing is found there",
}


@dataclass(frozen=True)
class Segmented:
    """What a run wrote.

    Attributes:
        slices: of the volume.
        found: slices of this shard that an earlier run had left.
        lacking: slices that other shards have still to write.
        masks: the folder of masks, or the file or Zarr where the volume is one.
        probability, labels: likewise, or None.
        overlays: the folder of overlays, or None.
        objects: number of instances, where they were asked for and nothing is lacking.
        coverage: share of all pixels so far, in [0, 1], that each class has.
        notes: what was found in the greys, in words.
    """

    slices: int
    found: int
    lacking: int
    masks: Path
    probability: Path | None
    labels: Path | None
    overlays: Path | None
    objects: int | None
    coverage: dict[str, float]
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The same in words."""
        done = self.slices - self.lacking
        noun = "slice" if done == 1 else "slices"
        there = f", {self.found} of them earlier" if self.found else ""
        yield f"{done} {noun} segmented{there}, masks in {self.masks}"
        if self.lacking:
            yield f"{self.lacking} of {self.slices} slices are left to other shards"
        if self.probability is not None:
            yield f"probabilities in {self.probability}"
        if self.labels is not None:
            yield f"{self.objects} objects, labels in {self.labels}"
        if self.overlays is not None:
            yield f"overlays in {self.overlays}"
        yield from self.notes
        for label, share in self.coverage.items():
            yield f"{label}: {share:.2%} of all pixels"


def totals(lines: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Each of :data:`COUNTED` over all slices."""
    lines = list(lines)
    return {key: sum(line[key] for line in lines) for key in COUNTED}


def coverage(lines: Iterable[dict[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    """Share of all pixels, in [0, 1], that each class has.

    Args:
        lines: of the slices, as :class:`~emfast.segmentation.record.Record` lists them.
        names: of the classes.
    """
    lines = list(lines)
    pixels = sum(line["pixels"] for line in lines)
    counts = np.sum([line["classes"] for line in lines], axis=0) if lines else [0] * len(names)
    return {name: int(count) / max(pixels, 1) for name, count in zip(names, counts, strict=True)}


def notes(lines: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """What was found in the greys, in words."""
    lines, told = list(lines), []
    for key, text in COUNTED.items():
        found = [line[key] for line in lines if line[key]]
        if found:
            noun = "slice" if len(found) == 1 else "slices"
            told.append(f"{sum(found)} pixels in {len(found)} {noun} {text}")
    return tuple(told)
