"""Applying rules to the scores of a whole set, which may be large."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfast.selection.rules import Rules
from emfast.selection.scores import Scores
from emfast.selection.strata import Strata

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """Which images of a set are kept, by their place in its manifest.

    Attributes:
        kept: bool (images,), or as far as the set was looked at.
        passed: bool (images,), those that pass all thresholds.
        ranked_out: bool (images,), those of them that are not among the best.
        quotas: images of each stratum that make the mix; None where no mix was asked for.
        available: images of each stratum to choose from; None likewise.
    """

    kept: Bools
    passed: Bools
    ranked_out: Bools
    quotas: tuple[int, ...] | None
    available: tuple[int, ...] | None

    def reasons(self, place: int, failed: tuple[str, ...]) -> tuple[str, ...]:
        """Why an image is not kept.

        Args:
            place: of the image in the manifest.
            failed: thresholds that it does not pass.
        """
        if failed or self.kept[place]:
            return failed
        return ("rank",) if self.ranked_out[place] else ("match",)


def choose(scores: Iterable[Scores], rules: Rules, strata: Strata, repair: bool) -> Choice:
    """Apply rules: thresholds, then the best share, the first ones, or the mix.

    A few numbers an image are held in memory.

    Args:
        scores: of every image, in the order of the manifest.
        rules: with a number for every threshold.
        strata: of the real tiles.
        repair: whether masks would be repaired.
    """
    rows = []
    for image in scores:
        mask = image.of_mask(repair)
        # An empty mask agrees or does not; it cannot agree more than others.
        agreement = mask.agreement if mask.area else np.nan
        stratum = strata.number(mask.area, mask.objects)
        rows.append((not rules.failed(image, repair), agreement, image.distance, stratum))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4)
    passed = columns[:, 0] > 0
    kept = passed.copy()
    ranked_out = np.zeros_like(passed)
    if rules.best is not None:
        kept[passed] = _best(columns[passed, 1], columns[passed, 2], rules.best)
        ranked_out = passed & ~kept
    if rules.first is not None:
        kept = kept[: _length(kept, rules.first)]
    if not rules.match:
        return Choice(kept, passed, ranked_out, None, None)
    numbers = columns[:, 3].astype(np.int64)
    available = np.bincount(numbers[kept], minlength=len(strata.counts))
    quotas = strata.quotas(available)
    for stratum, quota in enumerate(quotas):
        # Images of a set are independent draws: the first ones are as good as any.
        kept[np.flatnonzero(kept & (numbers == stratum))[quota:]] = False
    return Choice(kept, passed, ranked_out, tuple(quotas.tolist()), tuple(available.tolist()))


def _length(kept: Bools, first: int) -> int:
    """Up to where a set has ``first`` images to keep; all of it where it has fewer."""
    places = np.flatnonzero(kept)
    return int(places[first - 1]) + 1 if len(places) >= first else len(kept)


def _best(agreement: Floats, distance: Floats, share: float) -> Bools:
    """The best share of images, by the mean of two ranks.

    The ranks are those of the agreement and of the closeness in feature space, each from 0 (worst)
    to 1. An image with an empty mask gets the middle rank in agreement. Of equal images the first
    is better.

    Args:
        agreement: float64 (images,); NaN for an empty mask.
        distance: float64 (images,).
        share: to keep, of all.
    """
    rank = np.full(len(agreement), 0.5)
    known = ~np.isnan(agreement)
    rank[known] = _ranks(agreement[known])
    quality = rank + _ranks(-distance)
    best = np.argsort(-quality, kind="stable")[: round(share * len(quality))]
    chosen = np.zeros(len(quality), dtype=bool)
    chosen[best] = True
    return chosen


def _ranks(values: Floats) -> Floats:
    """Share of the values that each is above, those equal to it counting half."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    up_to = np.searchsorted(ordered, values, side="right")
    ranks: Floats = (below + up_to) / (2 * max(1, len(values)))
    return ranks
