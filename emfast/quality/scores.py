"""The scores of a report in a reader's words, and how their values are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emfast.quality.draws import Row, Value

MISSING = "n/a"


@dataclass(frozen=True)
class Score:
    """One score of a report.

    Attributes:
        name: in ``report.json``.
        title: for people.
        better: "lower", "higher", or "real", the closer to the real set's value.
        note: what it measures, in a sentence.
        percent: whether it is a share, written in percent.
        factor: by which other values are multiplied for writing.
    """

    name: str
    title: str
    better: Literal["lower", "higher", "real"]
    note: str
    percent: bool = False
    factor: float = 1.0

    def text(self, value: Value | None) -> str:
        """Write a value: "0.018 ± 0.006", "8.3 ± 0.4 %", "n/a"."""
        if value is None:
            return MISSING
        scale, unit = (100.0, " %") if self.percent else (self.factor, "")
        if value.deviation is None:
            return f"{number(scale * value.mean)}{unit}"
        return f"{number(scale * value.mean)} ± {number(scale * value.deviation, 2)}{unit}"

    def against_real(self, row: Row) -> str:
        """The synthetic value in units of the real one, "3.1", or its difference, "-46 %".

        A multiple for scores of which lower is better, otherwise a difference; empty where the real
        value is missing or not above 0.
        """
        if row.synthetic is None or row.real is None or row.real.mean <= 0:
            return ""
        ratio = row.synthetic.mean / row.real.mean
        if self.better == "lower":
            return number(ratio, 2) if ratio > 0 else ""
        difference = round(100 * (ratio - 1))
        return f"{difference:+d} %" if difference else "0 %"


def number(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits and no exponent: 1830, 27.1, 0.0182."""
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    return f"{float(text):.0f}" if abs(value) >= 1 else f"{float(text):.6f}".rstrip("0").rstrip(".")


# Groups of scores, as they stand together on the page.
GREY = (
    Score("grey", "Formula (2), whole images", "lower", "Squared grey levels; the paper: 27.1."),
    Score(
        "object_grey",
        "Formula (2), mitochondria",
        "lower",
        "The same for the pixels under the masks; the paper: 15.41.",
    ),
)
STRUCTURE = (
    Score(
        "frechet",
        "Fréchet distance",
        "lower",
        "Distance of Gaussians fitted to both clouds. It grows as the sets get smaller.",
    ),
    Score(
        "kernel",
        "Kernel distance, times 1000",
        "lower",
        "Distance of the clouds without that bias; between equal ones it scatters around 0.",
        factor=1000.0,
    ),
    Score(
        "precision",
        "Precision",
        "higher",
        "Share of synthetic images that lie among the real ones.",
        percent=True,
    ),
    Score(
        "recall",
        "Recall",
        "higher",
        "Share of real tiles that lie among the synthetic ones.",
        percent=True,
    ),
    Score(
        "density",
        "Density",
        "real",
        "How densely real tiles surround a synthetic image. Above real, images crowd where tiles "
        "are common.",
    ),
    Score(
        "coverage",
        "Coverage",
        "higher",
        "Share of real tiles with a synthetic image in their neighbourhood.",
        percent=True,
    ),
    Score(
        "diversity",
        "Diversity",
        "real",
        "Mean distance of two images of one set. Far below real, the images repeat each other.",
    ),
)
TEXTURE = (
    Score(
        "spectrum",
        "Power spectrum, difference in dB",
        "lower",
        "Root mean square over all frequencies; 3 dB is a factor of 2.",
    ),
    Score(
        "patterns_1",
        "Local binary patterns, radius 1",
        "lower",
        "Share of pixels whose pattern would have to change: noise and sharpness.",
        percent=True,
    ),
    Score(
        "patterns_3",
        "Local binary patterns, radius 3",
        "lower",
        "The same for circles as wide as a membrane.",
        percent=True,
    ),
)
MASKS = (
    Score("area_fraction", "Area of mitochondria", "real", "Share of all pixels.", percent=True),
    Score("components", "Objects an image", "real", "Specks included."),
    Score("empty", "Images without objects", "real", "Share of the images.", percent=True),
    Score(
        "specks",
        "Specks under 64 pixels",
        "real",
        "Share of the objects that are too small for a mitochondrion.",
        percent=True,
    ),
    Score("size", "Median size in pixels", "real", "Of objects that are not specks."),
    Score("eccentricity", "Eccentricity", "real", "0 is a circle, 1 a line."),
    Score("solidity", "Solidity", "real", "Share of its convex hull that an object fills."),
    Score("cut", "Objects at the border", "real", "Share that the image cuts off.", percent=True),
)
AGREEMENT = (
    Score("dice", "Dice, all pixels", "higher", "Of all images at once."),
    Score("dice_median", "Dice, median image", "higher", "Half of the images are above it."),
)
COPIES = (
    Score(
        "similarity",
        "Similarity to the nearest real place",
        "real",
        "Median. Real: of real tiles to the nearest place of a far slice.",
    ),
    Score(
        "suspects",
        "More similar than any coincidence",
        "lower",
        "Share of the images. Real: the share to expect where nothing is copied.",
        percent=True,
    ),
    Score(
        "near_copies",
        "Near copies",
        "lower",
        "Share of the images; of real tiles 0 by definition.",
        percent=True,
    ),
)
GROUPS = {
    "grey": GREY,
    "structure": STRUCTURE,
    "texture": TEXTURE,
    "masks": MASKS,
    "agreement": AGREEMENT,
    "copies": COPIES,
}
SCORES = {score.name: score for group in GROUPS.values() for score in group}
# What a reader should see first.
SUMMARY = (
    "frechet",
    "grey",
    "object_grey",
    "spectrum",
    "area_fraction",
    "specks",
    "dice",
    "near_copies",
)
