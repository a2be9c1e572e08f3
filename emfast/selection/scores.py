"""What an image is judged by: four kinds of scores, made once and kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emfast.quality.mask_shape import components
from emfast.quality.novelty import Match
from emfast.quality.overlap import confusion
from emfast.selection.repair import Repair

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MaskScores:
    """Scores of a mask.

    Attributes:
        agreement: Dice of the mask and what an independent segmenter sees; 1 where both are empty.
        disagreement: share of the pixels in which the two differ.
        area: share of object pixels.
        objects: components that are not specks.
        cut: those of them that touch the border.
        specks: components of fewer than 64 pixels that do not touch the border.
    """

    agreement: float
    disagreement: float
    area: float
    objects: int
    cut: int
    specks: int


@dataclass(frozen=True)
class Repairs:
    """What a repair changed, and the scores of the repaired mask.

    Attributes:
        specks_dropped, pixels_dropped, holes_filled, pixels_filled: as in
            :class:`~emfast.selection.repair.Repaired`.
        scores: after it.
    """

    specks_dropped: int
    pixels_dropped: int
    holes_filled: int
    pixels_filled: int
    scores: MaskScores


@dataclass(frozen=True)
class Nearest:
    """The most similar place of the real slices.

    Attributes:
        similarity: correlation coefficient, in [-1, 1].
        slice: its name.
        y, x: top left corner of the window, in slice pixels.
        symmetry: as in :class:`~emfast.quality.novelty.Match`.
    """

    similarity: float
    slice: str
    y: int
    x: int
    symmetry: int


@dataclass(frozen=True)
class Scores:
    """All that is known of one image of a set.

    Attributes:
        index: of the image in its set.
        image, mask: SHA-256 of its files.
        distance: mean distance to the nearest real tiles in feature space, over that of a middling
            real tile to those of other slices.
        nearest: the most similar real place.
        drawn: scores of the mask as it is.
        repaired: of the repaired mask, where a repair changes anything.
    """

    index: int
    image: str
    mask: str
    distance: float
    nearest: Nearest
    drawn: MaskScores
    repaired: Repairs | None

    def of_mask(self, repair: bool) -> MaskScores:
        """Scores of the mask that a selection would keep."""
        return self.repaired.scores if repair and self.repaired is not None else self.drawn

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; ValueError, KeyError or TypeError for anything else."""
        repaired = values["repaired"]
        if repaired is not None:
            repaired = Repairs(**{**repaired, "scores": MaskScores(**repaired["scores"])})
        nearest, drawn = Nearest(**values["nearest"]), MaskScores(**values["drawn"])
        return cls(**{**values, "nearest": nearest, "drawn": drawn, "repaired": repaired})


def mask_scores(mask: Uint8, seen: Uint8) -> MaskScores:
    """Score a mask.

    Args:
        mask: uint8 (height, width), 0 background and 1 object.
        seen: what the segmenter sees, uint8 of that shape, 0 for background.
    """
    found = components(mask)
    whole = [component for component in found if not component.speck]
    pixels = confusion(seen, mask)
    return MaskScores(
        agreement=round(pixels.dice, 6),
        disagreement=round((pixels.fp + pixels.fn) / mask.size, 6),
        area=round(float((mask > 0).mean()), 6),
        objects=len(whole),
        cut=sum(component.cut for component in whole),
        specks=sum(component.speck and not component.cut for component in found),
    )


def repairs(mask: Uint8, seen: Uint8, repair: Repair) -> Repairs | None:
    """Repair a mask and score it again; None where there is nothing to repair."""
    done = repair(mask)
    if not done.changed:
        return None
    return Repairs(
        done.specks_dropped,
        done.pixels_dropped,
        done.holes_filled,
        done.pixels_filled,
        mask_scores(done.mask, seen),
    )


def nearest(match: Match, names: tuple[str, ...]) -> Nearest:
    """A match with the name of its slice, rounded for a file."""
    return Nearest(round(match.similarity, 6), names[match.slice], match.y, match.x, match.symmetry)
