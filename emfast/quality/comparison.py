"""A synthetic set beside a real one: every score, and the same score between real tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.data.tiles import Tiles
from emfast.quality.copies import Novelty, search_copies
from emfast.quality.draws import LEAST_IMAGES, Row, Value, draw_parts, score_rows
from emfast.quality.feature_distance import nearest_distance
from emfast.quality.features import FeatureNetwork
from emfast.quality.measures import Measures, features, measure
from emfast.quality.novelty import COARSE_SIDE
from emfast.quality.sets import LabelledSlices, RealSet, read_even, read_real
from emfast.segmentation.segmenter import Segmenter
from engines.errors import UserError

Uint8 = npt.NDArray[np.uint8]

# Twice as many real tiles are measured as synthetic images, for two disjoint parts, and at least
# so many that the scores of the real set are steady.
LEAST_REAL = 400
# Images with the worst, a middling and the best agreement with the segmenter that are shown.
EXAMPLES = 4


@dataclass(frozen=True)
class Example:
    """An image whose mask is shown beside what the segmenter sees.

    Attributes:
        index: of the image among those compared.
        seen: the segmenter's mask, uint8 (side, side).
    """

    index: int
    seen: Uint8


@dataclass(frozen=True)
class Comparison:
    """All that a report shows.

    Attributes:
        real, synthetic: where the sets come from, and their names.
        real_set: tiles and grey levels of the real slices.
        real_measures: of its tiles.
        synthetic_tiles: the images that were compared.
        synthetic_measures: of them.
        rows: each score by its name.
        novelty: the search for near copies.
        worst, middling, best: examples by their agreement with the segmenter.
        facts: how it was measured, JSON-ready.
    """

    real: LabelledSlices
    synthetic: LabelledSlices
    real_set: RealSet
    real_measures: tuple[Measures, ...]
    synthetic_tiles: Tiles
    synthetic_measures: tuple[Measures, ...]
    rows: dict[str, Row]
    novelty: Novelty
    worst: tuple[Example, ...]
    middling: tuple[Example, ...]
    best: tuple[Example, ...]
    facts: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each synthetic image that was compared."""
        return tuple(self.synthetic.names[tile.slice] for tile in self.synthetic_tiles.origins)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            **self.facts,
            "scores": {name: asdict(row) for name, row in self.rows.items()},
            "largest_coincidence": self.novelty.coincidence,
            "near_copy_similarity": self.novelty.threshold,
            "per_image": self._per_image(),
        }

    def _per_image(self) -> list[dict[str, Any]]:
        far = nearest_distance(features(self.synthetic_measures), features(self.real_measures))
        nearest = dict(zip(self.novelty.searched, self.novelty.matches, strict=True))
        entries = []
        for i, (name, m) in enumerate(zip(self.names, self.synthetic_measures, strict=True)):
            entry = {
                "image": name,
                "dice": m.agreement.dice,
                "area_fraction": m.area_fraction,
                "components": len(m.components),
                "specks": sum(c.speck for c in m.components),
                "cut": sum(c.cut for c in m.components),
                "feature_distance": float(far[i]),
            }
            if i in nearest:
                match = nearest[i]
                entry["nearest"] = {
                    **asdict(match),
                    "slice": self.real.names[match.slice],
                    "near_copy": match.similarity > self.novelty.threshold,
                }
            entries.append(entry)
        return entries


def compare_sets(
    real: LabelledSlices,
    synthetic: LabelledSlices,
    network: FeatureNetwork,
    segmenter: Segmenter,
    limit: int,
    seed: int = 0,
) -> Comparison:
    """Measure a synthetic set and real tiles of its size, and compare them.

    Args:
        real: slices at least as large as the synthetic images.
        synthetic: square images of one size.
        network: gives the features.
        segmenter: independent of the synthetic masks.
        limit: at most so many synthetic images are read, evenly over the set.
        seed: of the draws of real tiles.

    Raises:
        UserError: too few images on either side, or sizes that do not fit.
    """
    if limit < LEAST_IMAGES or len(synthetic) < LEAST_IMAGES:
        raise UserError(
            f"{min(limit, len(synthetic))} synthetic images; a report needs at least {LEAST_IMAGES}"
        )
    tiles = read_even(synthetic, limit)
    side = tiles.images.shape[1]
    if side < COARSE_SIDE:
        raise UserError(
            f"{synthetic.source}: images of {side} x {side} pixels; a report needs at least "
            f"{COARSE_SIDE} x {COARSE_SIDE}"
        )
    real_set = read_real(real, side, max(2 * len(tiles), LEAST_REAL), seed)
    draws = draw_parts(real_set.tiles, len(tiles), np.random.default_rng([seed, 1]))
    measured, real_measured = (
        tuple(measure(part.images, part.stack().labels(), network, segmenter, f"measuring {name}"))
        for name, part in (("synthetic images", tiles), ("real tiles", real_set.tiles))
    )
    rows = score_rows(measured, real_measured, real_set, draws)
    novelty = search_copies(real, real_set, tiles, np.random.default_rng([seed, 2]))
    nearest, coincidence = (
        Value(float(np.median([match.similarity for match in matches])))
        for matches in (novelty.matches, novelty.coincidences)
    )
    rows["similarity"] = Row(nearest, coincidence, ())
    expected = Value(1 / (len(novelty.coincidences) + 1))
    rows["suspects"] = Row(Value(novelty.suspects), expected, ())
    rows["near_copies"] = Row(Value(novelty.near_copies), Value(0.0), ())
    worst, middling, best = _examples(tiles, measured, segmenter)
    facts = {
        "real": {"source": str(real.source), "slices": len(real), "tiles": len(real_measured)},
        "synthetic": {
            "source": str(synthetic.source),
            "images": len(synthetic),
            "compared": len(tiles),
            "size": side,
        },
        "images_a_side": len(draws[0].reference),
        "draws": len(draws),
        "seed": seed,
        "searched_for_copies": len(novelty.searched),
        "features": {"name": network.name, "sha256": network.sha256, "engine": str(network.info)},
        "segmenter": {
            "name": segmenter.bundle.manifest.name,
            "sha256": segmenter.bundle.sha256,
            "engine": str(segmenter.info),
        },
    }
    return Comparison(
        real=real,
        synthetic=synthetic,
        real_set=real_set,
        real_measures=real_measured,
        synthetic_tiles=tiles,
        synthetic_measures=measured,
        rows=rows,
        novelty=novelty,
        worst=worst,
        middling=middling,
        best=best,
        facts=facts,
    )


def _examples(
    tiles: Tiles, measures: Sequence[Measures], segmenter: Segmenter
) -> tuple[tuple[Example, ...], ...]:
    """The worst, middling and best images by their agreement, of those with objects."""
    with_objects = [i for i, m in enumerate(measures) if m.components]
    ordered = sorted(with_objects, key=lambda i: measures[i].agreement.dice)
    middle = max(0, (len(ordered) - EXAMPLES) // 2)
    parts = ordered[:EXAMPLES], ordered[middle : middle + EXAMPLES], ordered[::-1][:EXAMPLES]
    return tuple(
        tuple(Example(i, segmenter.segment(tiles.images[[i]])[0]) for i in part) for part in parts
    )
