from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from emfast.quality.features import FeatureNetwork
from emfast.quality.grey import grey_histogram
from emfast.quality.measures import (
    distances,
    features,
    grey_distances,
    measure,
    statistics,
    total_greys,
    total_object_greys,
)
from emfast.quality.overlap import confusion
from emfast.segmentation.segmenter import Segmenter
from tests.bundles import write_segmenter_bundle
from tests.emfast.quality.sets_of_blobs import cut, stack, write_network

IMAGES, MASKS = cut(*stack(), count=40)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FeatureNetwork, Segmenter]]:
    """A feature network, and a segmenter that sees what is darker than the image's mean."""
    folder = tmp_path_factory.mktemp("judges")
    bundle = write_segmenter_bundle(folder / "segmenter", threshold=0.99)
    with (
        FeatureNetwork.open(write_network(folder / "network.onnx"), threads=1) as network,
        Segmenter.open(bundle, "onnxruntime-cpu", threads=1) as segmenter,
    ):
        yield network, segmenter


def test_an_image_is_measured_as_it_would_be_alone(
    judges: tuple[FeatureNetwork, Segmenter],
) -> None:
    network, segmenter = judges
    measures = measure(IMAGES[:6], MASKS[:6], network, segmenter, "measuring")
    (alone,) = measure(IMAGES[5:6], MASKS[5:6], network, segmenter, "measuring")
    last = measures[5]
    assert last.features == pytest.approx(alone.features, rel=1e-5)
    assert last.agreement == alone.agreement
    assert last.agreement == confusion(segmenter.segment(IMAGES[5:6])[0], MASKS[5])
    assert np.array_equal(last.greys, grey_histogram(IMAGES[5]))
    assert np.array_equal(last.object_greys, grey_histogram(IMAGES[5], MASKS[5]))
    assert last.area_fraction == MASKS[5].mean()
    assert sum(c.area for c in last.components) == MASKS[5].sum()


def test_scores_of_a_set_against_itself(judges: tuple[FeatureNetwork, Segmenter]) -> None:
    measures = measure(IMAGES, MASKS, *judges, "measuring")
    scores = distances(measures, measures)
    assert scores["frechet"] == pytest.approx(0, abs=1e-6)
    assert scores["spectrum"] == scores["patterns_1"] == scores["patterns_3"] == 0
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1
    greys = grey_distances(measures, total_greys(measures), total_object_greys(measures))
    assert greys == {"grey": 0, "object_grey": 0}
    values = statistics(measures)
    assert values["area_fraction"] == pytest.approx(MASKS.mean())
    assert values["dice"] == sum((m.agreement for m in measures[1:]), measures[0].agreement).dice
    assert values["dice_median"] == np.median([m.agreement.dice for m in measures])
    assert values["dice"] is not None and values["dice"] > 0.8
    vectors = features(measures)
    pairs = [np.linalg.norm(vectors[i] - vectors[j]) for i in range(40) for j in range(i)]
    assert values["diversity"] == pytest.approx(np.mean(pairs), rel=1e-4)


def test_what_goes_wrong_shows_in_its_own_score(judges: tuple[FeatureNetwork, Segmenter]) -> None:
    real = measure(IMAGES, MASKS, *judges, "measuring")

    def measured(images: np.ndarray, masks: np.ndarray) -> tuple[dict, dict, dict]:
        m = measure(images, masks, *judges, "measuring")
        greys = grey_distances(m, total_greys(real), total_object_greys(real))
        return statistics(m), distances(m, real), greys

    good, _, _ = measured(IMAGES, MASKS)
    # Ten levels brighter: formula (2) is 100, texture stays.
    _, texture, greys = measured(IMAGES + np.uint8(10), MASKS)
    assert greys["grey"] == pytest.approx(100) and greys["object_grey"] == pytest.approx(100)
    assert texture["spectrum"] == pytest.approx(0, abs=1e-6)
    # Masks that belong to other images: agreement falls, mask statistics stay.
    shuffled, _, _ = measured(IMAGES, np.roll(MASKS, 1, axis=0))
    assert shuffled["dice"] < 0.5 * good["dice"]
    assert shuffled["area_fraction"] == good["area_fraction"]
    # A speck planted in every mask.
    specked = MASKS.copy()
    specked[:, 20:24, 20:24] = 1
    planted, _, _ = measured(IMAGES, specked)
    assert planted["components"] > good["components"] and planted["specks"] > good["specks"]
    # No masks at all.
    empty, _, greys = measured(IMAGES, np.zeros_like(MASKS))
    assert empty["empty"] == 1 and empty["dice"] == 0 and greys["object_grey"] is None
    # One image over and over.
    repeated, scores, _ = measured(IMAGES[:1].repeat(40, axis=0), MASKS[:1].repeat(40, axis=0))
    assert repeated["diversity"] == 0 and scores["recall"] < 0.1
    # Noise.
    rng = np.random.default_rng(0)
    noisy = np.clip(IMAGES + rng.normal(0, 20, IMAGES.shape), 0, 255).astype(np.uint8)
    _, scores, _ = measured(noisy, MASKS)
    assert scores["spectrum"] > 3 and scores["patterns_1"] > 0.01
    assert scores["frechet"] > 0.1 and scores["precision"] < 0.5
