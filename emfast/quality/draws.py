"""Scores of a synthetic set beside the same scores between real tiles, over several draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfast.data.tiles import Tiles
from emfast.progress import progress
from emfast.quality.feature_distance import NEIGHBOURS
from emfast.quality.measures import (
    Measures,
    distances,
    grey_distances,
    statistics,
    total_greys,
    total_object_greys,
)
from emfast.quality.sets import RealSet, split_halves, split_interleaved
from engines.errors import UserError

Indices = npt.NDArray[np.intp]
Scores = dict[str, float | None]

# Fewer images than these leave no room for the fifth neighbour on which some scores stand.
LEAST_IMAGES = NEIGHBOURS + 3
DRAWS = 10


@dataclass(frozen=True)
class Value:
    """A score: one value, or the mean of several draws with their standard deviation."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Row:
    """A score of the synthetic set beside the same of real tiles.

    Attributes:
        synthetic: the synthetic set; for a distance, to real tiles.
        real: as many real tiles; for a distance, to others of the same depths of the stack.
        halves: for a distance, tiles of the stack's first half to those of its second; otherwise
            the score of either half.
        None stands for a score that there is nothing to compute from.
    """

    synthetic: Value | None
    real: Value | None
    halves: tuple[Value | None, ...]


@dataclass(frozen=True)
class Draw:
    """Indices of one draw: equally many of each."""

    reference: Indices
    real: Indices
    synthetic: Indices
    first_half: Indices
    second_half: Indices


def draw_parts(real: Tiles, synthetic: int, rng: np.random.Generator) -> list[Draw]:
    """Draw disjoint parts of the real tiles, and as many synthetic images.

    Raises:
        UserError: too few real tiles.
    """
    slices = np.array([tile.slice for tile in real.origins])
    parts = []
    for _ in range(DRAWS):
        first, half = split_interleaved(slices, rng), split_halves(slices)
        parts.append([np.flatnonzero(part) for part in (first, ~first, half, ~half)])
    count = min(synthetic, *(len(indices) for draw in parts for indices in draw))
    if count < LEAST_IMAGES:
        raise UserError(
            f"the real slices give {len(real)} tiles of this size; a report needs at least "
            f"{LEAST_IMAGES} in either half of the stack"
        )

    def choose(indices: Indices) -> Indices:
        return np.sort(rng.choice(indices, count, replace=False))

    return [
        Draw(choose(a), choose(b), choose(np.arange(synthetic)), choose(first), choose(second))
        for a, b, first, second in parts
    ]


def score_rows(
    synthetic: Sequence[Measures],
    real: Sequence[Measures],
    real_set: RealSet,
    draws: Sequence[Draw],
) -> dict[str, Row]:
    """Every score of a synthetic set beside the same of real tiles.

    Args:
        synthetic: measures of the synthetic images.
        real: measures of the tiles of ``real_set``.
        real_set: whose grey levels, those of all tiles, formula (2) compares with.
        draws: indices into both.

    Returns:
        The rows of :func:`~emfast.quality.measures.grey_distances`,
        :func:`~emfast.quality.measures.distances` and
        :func:`~emfast.quality.measures.statistics`.
    """

    def take(measures: Sequence[Measures], indices: Indices) -> list[Measures]:
        return [measures[i] for i in indices]

    def greys(measures: Sequence[Measures]) -> Scores:
        return grey_distances(measures, real_set.greys, real_set.object_greys)

    def greys_of_halves(draw: Draw) -> Scores:
        first, second = take(real, draw.first_half), take(real, draw.second_half)
        return grey_distances(first, total_greys(second), total_object_greys(second))

    def over_draws(score: Callable[[Draw], Mapping[str, float | None]]) -> dict[str, Value | None]:
        values = []
        for draw in draws:
            values.append(score(draw))
            advance()
        return _spread(values)

    with progress("comparing", 6 * len(draws)) as advance:
        own = _spread([greys(synthetic)])
        drawn = over_draws(lambda d: greys(take(real, d.real)))
        halves = [over_draws(greys_of_halves)]
        rows = _rows(own, drawn, halves)
        own = over_draws(lambda d: distances(take(synthetic, d.synthetic), take(real, d.reference)))
        drawn = over_draws(lambda d: distances(take(real, d.real), take(real, d.reference)))
        halves = [
            over_draws(lambda d: distances(take(real, d.first_half), take(real, d.second_half)))
        ]
        rows |= _rows(own, drawn, halves)
        own = _spread([statistics(synthetic)])
        drawn = over_draws(lambda d: statistics(take(real, d.real)))
        in_first = split_halves(np.array([tile.slice for tile in real_set.tiles.origins]))
        parts = [take(real, np.flatnonzero(part)) for part in (in_first, ~in_first)]
        halves = [_spread([statistics(part)]) for part in parts]
        return rows | _rows(own, drawn, halves)


def _rows(
    synthetic: dict[str, Value | None],
    real: dict[str, Value | None],
    halves: Sequence[dict[str, Value | None]],
) -> dict[str, Row]:
    return {
        name: Row(value, real[name], tuple(half[name] for half in halves))
        for name, value in synthetic.items()
    }


def _spread(draws: Sequence[Mapping[str, float | None]]) -> dict[str, Value | None]:
    """Mean and standard deviation of each score over draws, of which some may lack it."""
    values = {}
    for name in draws[0]:
        known = [value for draw in draws if (value := draw[name]) is not None]
        several = len(known) > 1
        deviation = float(np.std(known, ddof=1)) if several else None
        values[name] = Value(float(np.mean(known)), deviation) if known else None
    return values
