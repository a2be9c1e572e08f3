"""What to make of a volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emfast.segmentation.instances import Method
from emfast.segmentation.neighbours import check_median
from engines.errors import UserError

ProbabilityType = Literal["float32", "uint8"]


@dataclass(frozen=True)
class Settings:
    """What to make of a volume.

    Attributes:
        invert: turn black into white before the network sees it.
        limits: darkest and brightest grey; what is beyond is clipped.
        pixel_size: edge of a pixel in nm, instead of what the file says.
        median: neighbouring slices whose median probability counts, odd; 1 for none.
        ones: masks of one class hold 1 instead of 255.
        probability: also write probabilities, as float32 in [0, 1] or as uint8, where 255 is 1.
        overlay: also draw every slice with its mask outlined.
        instances: also number the objects, by this method.
        min_size: objects of fewer voxels are not numbered.
        fill_holes: whether holes of objects count as object.
    """

    invert: bool = False
    limits: tuple[float, float] | None = None
    pixel_size: float | None = None
    median: int = 1
    ones: bool = False
    probability: ProbabilityType | None = None
    overlay: bool = False
    instances: Method | None = None
    min_size: int = 0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        check_median(self.median)
        if self.instances is None and (self.min_size or self.fill_holes):
            raise UserError(
                "a least size and filled holes are those of numbered objects, which were not "
                "asked for; say how with --instances"
            )
