from __future__ import annotations

import numpy as np
import pytest

from emfast.quality.image_scores import SCORES, SPECK, image_scores
from emfast.quality.mask_shape import components


def test_scores_of_a_drawn_mask() -> None:
    image = np.full((40, 50), 100, np.uint8)
    image[:20] = 140
    mask = np.zeros((40, 50), np.uint8)
    mask[0:10, 0:10] = 1  # 100 pixels at a corner: one component, although at two borders
    mask[20:28, 20:28] = 2  # another class: 64 pixels are no speck
    mask[28, 28] = 1  # touches it by a corner
    mask[35, 49] = 1  # a speck at the border
    scores = image_scores(image, mask)
    assert scores == {
        "mask_area": round(166 / 2000, 6),
        "components": 3,
        "specks": 1,
        "border": 2,
        "grey_mean": 120.0,
        "grey_deviation": 20.0,
    }
    assert tuple(scores) == SCORES


def test_they_agree_with_the_report() -> None:
    rng = np.random.default_rng(0)
    mask = (np.kron(rng.random((16, 16)), np.ones((6, 6))) > 0.7).astype(np.uint8)
    image = rng.integers(0, 256, mask.shape).astype(np.uint8)
    found, scores = components(mask), image_scores(image, mask)
    assert scores["components"] == len(found)
    assert scores["specks"] == sum(c.area < SPECK for c in found)
    assert scores["border"] == sum(c.cut for c in found)
    assert scores["mask_area"] == pytest.approx(mask.mean(), abs=1e-6)
    assert scores["grey_mean"] == pytest.approx(image.mean(), abs=1e-4)
    assert scores["grey_deviation"] == pytest.approx(image.std(), abs=1e-4)


def test_an_empty_mask() -> None:
    scores = image_scores(np.full((8, 8), 7, np.uint8), np.zeros((8, 8), np.uint8))
    assert scores["components"] == scores["specks"] == scores["border"] == 0
    assert scores["grey_mean"] == 7
