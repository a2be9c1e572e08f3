from __future__ import annotations

import numpy as np
import pytest

from emfast.segmentation.preprocessing import SegmenterSpec, normalize
from engines.errors import UserError

SPEC = SegmenterSpec(2, ("mitochondria", "vesicles"), "standardize", 0.4)


def test_every_slice_is_standardised_by_its_own_statistics() -> None:
    rng = np.random.default_rng(0)
    images = np.stack([rng.integers(0, 100, (20, 30)), rng.integers(150, 256, (20, 30))])
    x = normalize(images.astype(np.uint8), "standardize")
    assert x.shape == (2, 1, 20, 30)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=(1, 2, 3)), 1, atol=1e-6)


def test_empty_slices_stay_empty() -> None:
    images = np.full((2, 16, 16), 77, dtype=np.uint8)
    images[1, 0, 0] = 78
    x = normalize(images, "standardize")
    assert not x[0].any()
    assert np.abs(x[1]).max() < 1  # one grey level is not blown up to 16 deviations


def test_unit_divides_by_255() -> None:
    x = normalize(np.array([[[0, 51, 255]]], dtype=np.uint8), "unit")
    np.testing.assert_allclose(x, [[[[0, 0.2, 1]]]], rtol=1e-6)


def test_spec_survives_json_values() -> None:
    assert SegmenterSpec.from_dict(SPEC.to_dict()) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "labels must be a list"),
        ({"labels": "mitochondria"}, "labels must be a list"),
        ({"labels": ["mitochondria"]}, "1 labels for 2 classes"),
        ({"classes": "many"}, "malformed"),
        ({"classes": 0}, "0 classes"),
        ({"normalization": "minmax"}, "accepted: standardize, unit"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"threshold": float("nan")}, "threshold nan"),
    ],
)
def test_malformed_specs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SegmenterSpec.from_dict({**SPEC.to_dict(), **change})


def test_missing_entries_are_named() -> None:
    values = SPEC.to_dict()
    del values["threshold"]
    with pytest.raises(UserError, match="threshold"):
        SegmenterSpec.from_dict(values)
