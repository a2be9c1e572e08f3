from __future__ import annotations

import numpy as np
import pytest

from emfast.quality.overlap import Confusion, confusion
from engines.errors import UserError


def test_scores_of_known_counts() -> None:
    counts = Confusion(tp=6, fp=2, fn=4, tn=88)
    assert counts.dice == 12 / 18
    assert counts.iou == 6 / 12
    assert counts.precision == 6 / 8
    assert counts.recall == 6 / 10
    assert counts.to_dict() == {
        "dice": 12 / 18,
        "iou": 0.5,
        "precision": 0.75,
        "recall": 0.6,
        "tp": 6,
        "fp": 2,
        "fn": 4,
        "tn": 88,
    }


def test_counts_of_masks_with_any_object_value() -> None:
    prediction = np.array([[255, 255, 0], [0, 255, 0]], dtype=np.uint8)
    label = np.array([[1, 0, 1], [0, 1, 1]], dtype=np.uint8)
    assert confusion(prediction, label) == Confusion(tp=2, fp=1, fn=2, tn=1)


@pytest.mark.parametrize(
    ("prediction", "label", "scores"),
    [
        (0, 0, (1, 1, 1, 1)),
        (0, 1, (0, 0, 0, 0)),
        (1, 0, (0, 0, 0, 0)),
        (1, 1, (1, 1, 1, 1)),
    ],
)
def test_empty_masks_have_defined_scores(
    prediction: int, label: int, scores: tuple[int, ...]
) -> None:
    counts = confusion(
        np.full((4, 4), prediction, dtype=np.uint8), np.full((4, 4), label, dtype=np.uint8)
    )
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == scores


def test_pooled_is_the_sum_and_not_the_mean() -> None:
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 2, (5, 20, 30), dtype=np.uint8)
    label = rng.integers(0, 2, (5, 20, 30), dtype=np.uint8)
    prediction[0], label[0] = 0, 0  # an empty slice has Dice 1
    slices = [confusion(p, q) for p, q in zip(prediction, label, strict=True)]
    pooled = sum(slices, Confusion())
    assert pooled == confusion(prediction, label)
    assert pooled.tp + pooled.fp + pooled.fn + pooled.tn == label.size
    reference = 2 * np.sum(prediction * label) / (prediction.sum() + label.sum())
    assert pooled.dice == pytest.approx(reference)
    assert np.mean([s.dice for s in slices]) > pooled.dice + 0.05


def test_shapes_must_match() -> None:
    with pytest.raises(UserError, match="cannot be compared"):
        confusion(np.zeros((2, 3), dtype=np.uint8), np.zeros((3, 2), dtype=np.uint8))
