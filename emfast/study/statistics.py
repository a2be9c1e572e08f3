"""What the seeds of an arm say: mean, spread, and a paired test against the arm "real"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Of the interval of a mean difference.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Scores of several seeds.

    Attributes:
        n: number of seeds.
        mean: of their scores.
        deviation: sample standard deviation (n - 1); None of one seed.
    """

    n: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Paired:
    """Scores of an arm minus those of another with the same seeds.

    A seed decides a segmenter's first weights, its augmentation and its dropout, in every arm
    alike, so that the difference is taken seed by seed. The test is Student's paired t-test, two
    sided: with as few seeds as trainings allow, rank and sign tests cannot reach small p at all. It
    takes differences to be normal, which so few cannot show; ``exact`` does not, and flips the
    signs of the differences in all 2^n ways.

    Attributes:
        n: pairs.
        mean: of the differences.
        interval: 95 % confidence interval of that mean, by Student's t; None of one pair.
        p: of the t-test; None of one pair, or where all differences are equal.
        exact: p of the exact sign-flip test, two-sided; None of one pair.
        floor: smallest p that the exact test can give, 2^(1 - n).
    """

    n: int
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    exact: float | None
    floor: float


def spread(scores: Sequence[float]) -> Spread:
    """Mean and spread of at least one score."""
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return Spread(len(scores), float(np.mean(scores)), deviation)


def paired(arm: Mapping[int, float], other: Mapping[int, float]) -> Paired | None:
    """Compare two arms over the seeds that both have.

    Args:
        arm, other: score of each seed.

    Returns:
        None where no seed is common.
    """
    seeds = sorted(set(arm) & set(other))
    if not seeds:
        return None
    differences = np.array([arm[seed] - other[seed] for seed in seeds])
    n, mean = len(seeds), float(differences.mean())
    floor = 2.0 ** (1 - n)
    if n == 1:
        return Paired(n, mean, None, None, None, floor)
    error = float(stats.sem(differences))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    p = float(stats.ttest_1samp(differences, 0).pvalue) if error > 0 else math.nan
    exact = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    return Paired(
        n,
        mean,
        (mean - half, mean + half),
        None if math.isnan(p) else p,
        float(exact.pvalue),
        floor,
    )
