"""How well two masks overlap, pixel by pixel: Dice, IoU, precision and recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of a predicted mask against a labelled one.

    They add up: the sum over the slices of a stack gives its pooled scores, those of all its
    pixels at once. The pooled Dice is not the mean of the slices' Dice, in which a slice with few
    objects would count as much as one with many.

    A score that is 0 / 0 is 1 where both masks are empty, since they agree, and otherwise 0: the
    precision of an empty prediction where there are objects, and the recall of a prediction where
    there are none.

    Attributes:
        tp: object pixels predicted as object.
        fp: background pixels predicted as object.
        fn: object pixels predicted as background.
        tn: background pixels predicted as background.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def dice(self) -> float:
        """2 tp / (2 tp + fp + fn), also called F1."""
        return self._ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """tp / (tp + fp + fn), intersection over union, also called Jaccard index."""
        return self._ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """tp / (tp + fp), the share of the prediction that is right."""
        return self._ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """tp / (tp + fn), the share of the objects that is found."""
        return self._ratio(self.tp, self.tp + self.fn)

    def _ratio(self, numerator: int, denominator: int) -> float:
        if denominator:
            return numerator / denominator
        return float(self.tp + self.fp + self.fn == 0)

    def to_dict(self) -> dict[str, float | int]:
        """Scores and counts, JSON-ready."""
        return {
            "dice": self.dice,
            "iou": self.iou,
            "precision": self.precision,
            "recall": self.recall,
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "tn": self.tn,
        }


def confusion(prediction: Uint8, label: Uint8) -> Confusion:
    """Count the pixels of one or several masks, pooled.

    Args:
        prediction: uint8, any shape, 0 for background.
        label: uint8, same shape, 0 for background.

    Raises:
        UserError: shapes that differ.
    """
    if prediction.shape != label.shape:
        raise UserError(f"masks of shape {prediction.shape} and {label.shape} cannot be compared")
    predicted, labelled = prediction > 0, label > 0
    tp = int(np.count_nonzero(predicted & labelled))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(labelled)) - tp
    return Confusion(tp, fp, fn, prediction.size - tp - fp - fn)
