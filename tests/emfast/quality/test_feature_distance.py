from __future__ import annotations

import numpy as np
import pytest

from emfast.quality.feature_distance import (
    diversity,
    frechet_distance,
    kernel_distance,
    manifold_scores,
    nearest_distance,
    neighbour_distance,
)

RNG = np.random.default_rng(0)
CLOUD = RNG.normal(size=(200, 12)) @ RNG.normal(size=(12, 12))


def test_frechet_distance_of_equal_sets_is_0() -> None:
    assert frechet_distance(CLOUD, CLOUD[::-1]) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_a_shifted_set_is_the_squared_shift() -> None:
    shift = np.arange(12.0)
    assert frechet_distance(CLOUD, CLOUD + shift) == pytest.approx(shift @ shift)


def test_frechet_distance_of_a_scaled_set() -> None:
    """Covariances C and 9 C: tr(C + 9 C - 6 C) = 4 tr(C), and means m and 3 m."""
    mean, covariance = CLOUD.mean(axis=0), np.cov(CLOUD, rowvar=False)
    expected = 4 * mean @ mean + 4 * np.trace(covariance)
    assert frechet_distance(CLOUD, 3 * CLOUD) == pytest.approx(expected)


def test_frechet_distance_of_fewer_images_than_features() -> None:
    few = RNG.normal(size=(8, 64)).astype(np.float32)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(few, few + 1) == pytest.approx(64, rel=1e-5)


def test_frechet_distance_in_one_dimension_is_formula_2() -> None:
    first, second = RNG.normal(100, 10, (500, 1)), RNG.normal(103, 14, (400, 1))
    means = first.mean() - second.mean()
    deviations = first.std(ddof=1) - second.std(ddof=1)
    assert frechet_distance(first, second) == pytest.approx(means**2 + deviations**2)


def test_kernel_distance_by_hand() -> None:
    """k(a, b) = (a b + 1)^3: within 1 and 27, across (1 + 1 + 8 + 27) / 4."""
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert kernel_distance(first, second) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_kernel_distance_is_unbiased() -> None:
    """Its mean over many small samples of one distribution is 0, unlike a Frechet distance's."""
    samples = [RNG.normal(size=(2, 20, 4)) for _ in range(400)]
    values = [kernel_distance(a, b) for a, b in samples]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert np.mean([frechet_distance(a, b) for a, b in samples]) > 0.1
    assert kernel_distance(samples[0][0], samples[0][1] + 1) > 20 * error


@pytest.mark.filterwarnings("ignore:Metric:UserWarning")
def test_torchmetrics_gives_the_same_distances() -> None:
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")

    class Pixels(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Features that are the image's own values."""

        num_features = 12

        def forward(self, x: object) -> object:
            return x.flatten(1)  # type: ignore[attr-defined]

    first, second = CLOUD[:90], 1.3 * CLOUD[90:180] + 0.5
    frechet = fid.FrechetInceptionDistance(Pixels(), input_img_size=(3, 2, 2)).set_dtype(
        torch.float64
    )
    kernel = kid.KernelInceptionDistance(Pixels(), subsets=1, subset_size=90)
    for metric in (frechet, kernel):
        for vectors, real in ((first, True), (second, False)):
            metric.update(torch.from_numpy(vectors).view(-1, 3, 2, 2), real=real)
    assert frechet_distance(first, second) == pytest.approx(float(frechet.compute()), rel=1e-5)
    assert kernel_distance(first, second) == pytest.approx(float(kernel.compute()[0]), rel=1e-5)


def test_manifold_scores_of_known_sets(capsys: pytest.CaptureFixture[str]) -> None:
    same = manifold_scores(CLOUD, CLOUD)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    far = manifold_scores(CLOUD + 1000, CLOUD)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    # A generator that repeats one real image: all it draws is good, and it covers next to nothing.
    repeated = manifold_scores(CLOUD[:1] + RNG.normal(0, 1e-3, (50, 12)), CLOUD)
    assert repeated["precision"] == 1
    assert repeated["recall"] < 0.05 and repeated["coverage"] < 0.2
    # Half of the images are off.
    half = manifold_scores(np.concatenate([CLOUD[:100], CLOUD[100:] + 1000]), CLOUD)
    assert half["precision"] == 0.5
    assert capsys.readouterr().out == ""


def test_nearest_distance_and_diversity_by_hand() -> None:
    reference = np.array([[0.0, 0.0], [10.0, 0.0]])
    assert nearest_distance(np.array([[3.0, 4.0], [10.0, 1.0]]), reference).tolist() == [5, 1]
    assert diversity(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) == pytest.approx(10 / 3)
    assert diversity(np.ones((4, 3))) == 0


def test_distance_to_the_nearest_few() -> None:
    reference = np.array([[float(i), 0.0] for i in (1, 2, 3, 4, 5, 100)])
    candidate = np.array([[0.0, 0.0]])
    assert neighbour_distance(candidate, reference).tolist() == [3]
    # Fewer than asked for: all that may count.
    allowed = np.array([[False, True, False, False, True, True]])
    assert neighbour_distance(candidate, reference, allowed)[0] == pytest.approx(107 / 3)
