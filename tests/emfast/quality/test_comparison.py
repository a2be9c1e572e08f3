from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emfast.quality import comparison, copies, draws
from emfast.quality.comparison import Comparison, compare_sets
from emfast.quality.features import FeatureNetwork
from emfast.quality.sets import open_labelled
from emfast.segmentation.segmenter import Segmenter
from tests.bundles import write_segmenter_bundle
from tests.emfast.quality.sets_of_blobs import cut, stack, write_network, write_set

REAL = stack()


@pytest.fixture(autouse=True)
def _few_real_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """For time: fewer real tiles and draws than a real report has."""
    monkeypatch.setattr(comparison, "LEAST_REAL", 96)
    monkeypatch.setattr(copies, "CALIBRATION", 40)
    monkeypatch.setattr(draws, "DRAWS", 4)


def compare(folder: Path, images: np.ndarray, masks: np.ndarray, seed: int = 0) -> Comparison:
    real, synthetic = folder / "real", folder / "synthetic"
    if not real.exists():
        write_set(real, *REAL)
        write_set(synthetic, images, masks)
        write_network(folder / "network.onnx")
        write_segmenter_bundle(folder / "segmenter", threshold=0.99)
    with (
        open_labelled(real) as real_slices,
        open_labelled(synthetic) as synthetic_slices,
        FeatureNetwork.open(folder / "network.onnx", threads=1) as network,
        Segmenter.open(folder / "segmenter", "onnxruntime-cpu", threads=1) as segmenter,
    ):
        return compare_sets(real_slices, synthetic_slices, network, segmenter, 100, seed)


def test_the_same_seed_gives_the_same_scores(tmp_path: Path) -> None:
    tiles = cut(*REAL, count=10)
    first, second, other = (compare(tmp_path, *tiles, seed).to_dict() for seed in (3, 3, 4))
    assert first == second
    assert first["scores"] != other["scores"]


def test_copies_among_others_are_told_by_image(tmp_path: Path) -> None:
    """Every third image is a real tile, darker and with noise; the others are of another stack."""
    images, masks = cut(*stack(seed=77), count=12)
    real_images, real_masks = cut(*REAL, count=4)
    noise = np.random.default_rng(0).normal(0, 5, real_images.shape)
    images[::3] = (0.8 * real_images + 10 + noise).round().astype(np.uint8)
    masks[::3] = real_masks
    result = compare(tmp_path, images, masks)
    found = [entry["nearest"]["near_copy"] for entry in result.to_dict()["per_image"]]
    assert found == [True, False, False] * 4
    assert result.novelty.near_copies == pytest.approx(1 / 3)
    largest = max(match.similarity for match in result.novelty.coincidences)
    assert result.novelty.threshold == pytest.approx((1 + largest) / 2)
    assert result.rows["near_copies"].synthetic == draws.Value(pytest.approx(1 / 3))


def test_a_large_real_set_is_searched_for_some_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "SEARCH_PLACES", 0)
    monkeypatch.setattr(copies, "LEAST_SEARCHED", 5)
    result = compare(tmp_path, *cut(*REAL, count=12))
    assert len(result.novelty.searched) == 5
    values = result.to_dict()
    assert values["searched_for_copies"] == 5
    assert sum("nearest" in entry for entry in values["per_image"]) == 5


def test_examples_are_ordered_by_agreement(tmp_path: Path) -> None:
    images, masks = cut(*REAL, count=12)
    wrong = [2, 5]
    masks[wrong] = np.roll(masks[wrong], 24, axis=1)
    masks[7] = 0  # nothing to show
    result = compare(tmp_path, images, masks)
    dice = [m.agreement.dice for m in result.synthetic_measures]
    worst, best = (
        [dice[example.index] for example in examples] for examples in (result.worst, result.best)
    )
    assert worst == sorted(worst) and best == sorted(best, reverse=True)
    assert {example.index for example in result.worst} >= set(wrong)
    shown = (*result.worst, *result.middling, *result.best)
    assert all(example.index != 7 and example.seen.shape == images[0].shape for example in shown)
