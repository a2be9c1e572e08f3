"""What a segmenter expects and what its classes mean: the domain's part of its bundle."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

Uint8 = npt.NDArray[np.uint8]
Normalization = Literal["standardize", "unit"]
Scope = Literal["slice", "volume"]


@dataclass(frozen=True)
class SegmenterSpec:
    """A segmenter's classes, input scale and decision.

    Attributes:
        classes: probability channels; class k is channel k - 1 and has label k in label maps.
        labels: the name of each class.
        normalization: "standardize", greys minus their mean and divided by their standard
            deviation, or "unit", greys divided by 255.
        threshold: the least probability, in [0, 1], at which a pixel belongs to a class.
        scope: whether "standardize" takes mean and deviation of each slice or of the volume.
        pixel_size: edge of the training images' pixels in nm, or None where it is not known.
    """

    classes: int
    labels: tuple[str, ...]
    normalization: Normalization
    threshold: float
    scope: Scope = "slice"
    pixel_size: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.classes <= 255:
            raise UserError(f"segmenter: {self.classes} classes; a label map holds 1 to 255")
        if len(self.labels) != self.classes:
            raise UserError(f"segmenter: {len(self.labels)} labels for {self.classes} classes")
        if self.normalization not in get_args(Normalization):
            raise UserError(
                f"segmenter: unknown normalization {self.normalization!r}; "
                f"accepted: {', '.join(get_args(Normalization))}"
            )
        if not 0 <= self.threshold <= 1:
            raise UserError(f"segmenter: threshold {self.threshold:g}; give a number in [0, 1]")
        if self.scope not in get_args(Scope):
            raise UserError(
                f"segmenter: unknown scope {self.scope!r} of the normalization; "
                f"accepted: {', '.join(get_args(Scope))}"
            )
        if self.pixel_size is not None and not 0 < self.pixel_size < math.inf:
            raise UserError(f"segmenter: pixel size {self.pixel_size:g}; give nm above 0, or none")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SegmenterSpec:
        """The inverse of :meth:`to_dict`; :class:`UserError` for malformed entries."""
        try:
            labels = values["labels"]
            if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
                raise TypeError("labels must be a list of names")
            return cls(
                int(values["classes"]),
                tuple(labels),
                values["normalization"],
                float(values["threshold"]),
                values.get("scope", "slice"),
                None if values.get("pixel_size") is None else float(values["pixel_size"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"segmenter: missing or malformed entry ({error})") from None


def normalize(images: Uint8, normalization: Normalization) -> npt.NDArray[np.float32]:
    """Scale slices for the network.

    Args:
        images: uint8 (slices, height, width), greys in [0, 255].
        normalization: "standardize" or "unit", as in :class:`SegmenterSpec`. Statistics are
            those of the whole slice; a deviation below 1 grey level counts as 1, so that noise on
            an empty slice is not blown up to contrast.

    Returns:
        float32 (slices, 1, height, width).
    """
    x = images[:, None].astype(np.float32)
    if normalization == "unit":
        x /= 255
        return x
    for plane, image in zip(x, images, strict=True):
        plane -= image.mean(dtype=np.float64)
        plane /= max(float(image.std(dtype=np.float64)), 1.0)
    return x


def label_map(probability: npt.NDArray[np.float32], threshold: float) -> Uint8:
    """Decide on one class a pixel.

    Args:
        probability: float32 (slices, classes, height, width) in [0, 1].
        threshold: in [0, 1].

    Returns:
        uint8 (slices, height, width): the label, from 1, of the class whose probability is largest
        (of equal ones the first) and not below ``threshold``, or else 0.
    """
    labels: Uint8 = (probability.argmax(axis=1) + 1).astype(np.uint8)
    labels[probability.max(axis=1) < threshold] = 0
    return labels
