"""The rules of a selection: which images are kept, and why others are not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from emfast.selection.reference import Limits
from emfast.selection.scores import Scores
from engines.errors import UserError

Number = TypeVar("Number", int, float)

# How much farther than the farthest real tile an image may lie from real tiles: those are of one
# stack, and other tissue of the same kind lies farther.
FARTHER = 1.5

# Reasons for which an image is rejected, in the order in which they are told.
REASONS = {
    "copy": "a near copy of a real place",
    "features": "unlike real tiles in feature space",
    "agreement": "the mask does not agree with what the segmenter sees",
    "specks": "specks in the mask",
    "area": "more object pixels than real tiles have",
    "objects": "more objects than real tiles have",
    "cut": "more objects cut by the border than real tiles have",
    "rank": "not among the best",
    "match": "more of its area and number of objects than real tiles have",
}


@dataclass(frozen=True)
class Rules:
    """What is kept. Every threshold that is None follows from the real tiles.

    Attributes:
        agreement: least Dice of the mask and what the segmenter sees.
        disagreement: share of the pixels up to which the two may differ, whatever the Dice: of a
            sliver at the border, or of one object that is hardly there, Dice says little.
        distance: largest distance to real tiles in feature space, in units of a middling real
            tile's; :data:`FARTHER` times that of the farthest real tile by default.
        similarity: largest similarity to a real place; half way from the largest between far real
            slices to a copy by default.
        specks: most specks of a mask.
        area: largest share of object pixels; that of the fullest real tile by default.
        objects, cut: most objects, and most that touch the border; those of real tiles by default.
        best: of the images that pass all thresholds, the share to keep, by rank.
        match: keep as many images as have together the real tiles' mix of area and number of
            objects.
        first: keep so many, the first that pass; images after them are not looked at.
    """

    agreement: float = 0.75
    disagreement: float = 0.0075
    distance: float | None = None
    similarity: float | None = None
    specks: int = 0
    area: float | None = None
    objects: int | None = None
    cut: int | None = None
    best: float | None = None
    match: bool = False
    first: int | None = None

    def __post_init__(self) -> None:
        for name in ("agreement", "disagreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: give a share from 0 to 1")
        for name in ("distance", "similarity", "specks", "area", "objects", "cut"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name} {value}: give a number from 0, or none")
        if self.best is not None and not 0 < self.best <= 1:
            raise UserError(f"best {self.best}: give a share above 0 and up to 1")
        if self.first is not None and self.first < 1:
            raise UserError(f"first {self.first}: give a number of images from 1")
        if self.first is not None and self.relative:
            raise UserError(
                "first and best or match: the first images are neither the best nor a mix; give one"
            )

    @property
    def relative(self) -> bool:
        """Whether an image is kept or not depending on the other images of its set."""
        return self.best is not None or self.match

    def settled(self, limits: Limits) -> Rules:
        """The same rules with a number for every threshold."""
        return replace(
            self,
            distance=_or(self.distance, FARTHER * limits.distance),
            similarity=_or(self.similarity, limits.similarity),
            area=_or(self.area, limits.area),
            objects=_or(self.objects, limits.objects),
            cut=_or(self.cut, limits.cut),
        )

    def failed(self, scores: Scores, repair: bool) -> tuple[str, ...]:
        """Reasons against an image, of :data:`REASONS`; none where it passes all thresholds.

        Args:
            scores: of the image.
            repair: whether its mask would be repaired.
        """
        mask = scores.of_mask(repair)
        agrees = mask.agreement >= self.agreement or mask.disagreement <= self.disagreement
        against = {
            "copy": _above(scores.nearest.similarity, self.similarity),
            "features": _above(scores.distance, self.distance),
            "agreement": not agrees,
            "specks": _above(mask.specks, self.specks),
            "area": _above(mask.area, self.area),
            "objects": _above(mask.objects, self.objects),
            "cut": _above(mask.cut, self.cut),
        }
        return tuple(reason for reason, holds in against.items() if holds)


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


def _or(given: Number | None, usual: Number) -> Number:
    return usual if given is None else given
