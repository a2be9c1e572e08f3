"""How far two sets lie apart in the feature space of a frozen network.

All functions take float arrays (count, width), one row an image, from
:class:`~emfast.quality.features.FeatureNetwork`.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np
import numpy.typing as npt
from prdc import compute_prdc
from scipy import linalg
from scipy.spatial.distance import cdist, pdist

Vectors = npt.NDArray[np.floating]

# Neighbours that span the manifold of a set, as in Naeem et al. 2020.
NEIGHBOURS = 5


def frechet_distance(first: Vectors, second: Vectors) -> float:
    """Frechet distance of the Gaussians fitted to two sets (Heusel et al. 2017, arXiv 1706.08500).

    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), formula (1) of the seed paper. It grows as
    the sets get smaller, so compare it only with distances of as many images.

    Args:
        first, second: at least two rows each.
    """
    mean = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    covariance_1, covariance_2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    # The trace of the root of C_1 C_2 is that of R C_2 R with R^2 = C_1, which is symmetric: its
    # eigenvalues are real whatever the rounding, also for fewer images than features.
    values, vectors = linalg.eigh(covariance_1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = linalg.eigvalsh(root @ covariance_2 @ root).clip(min=0)
    traces = np.trace(covariance_1) + np.trace(covariance_2)
    return float(mean @ mean + traces - 2 * np.sqrt(product).sum())


def kernel_distance(first: Vectors, second: Vectors) -> float:
    """Squared maximum mean discrepancy (Binkowski et al. 2018, arXiv 1801.01401), unbiased.

    With their kernel, (x . y / width + 1)^3. Its mean is 0 for two samples of one distribution,
    whatever their size, so a single value may lie below 0.

    Args:
        first, second: at least two rows each.
    """
    x, y = first.astype(np.float64), second.astype(np.float64)
    width = x.shape[1]
    within_x, within_y = ((a @ a.T / width + 1) ** 3 for a in (x, y))
    across = (x @ y.T / width + 1) ** 3
    n, m = len(x), len(y)
    mean_x = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    mean_y = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(mean_x + mean_y - 2 * across.mean())


def manifold_scores(candidate: Vectors, reference: Vectors) -> dict[str, float]:
    """Precision, recall, density and coverage (Naeem et al. 2020, arXiv 2002.09797), from prdc.

    The manifold of a set is the union of balls around its images, each reaching to its fifth
    nearest neighbour.

    Args:
        candidate, reference: more than six rows each; the reference is the real set.

    Returns:
        "precision": share of the candidates inside the reference's manifold.
        "recall": share of the references inside the candidates' manifold.
        "density": how many of the reference's balls hold a candidate, on average, over five; 1 for
        two samples of one distribution, and more where candidates crowd.
        "coverage": share of the reference's balls that hold a candidate.
    """
    with redirect_stdout(io.StringIO()):  # it prints the sizes
        scores = compute_prdc(reference, candidate, NEIGHBOURS)
    return {name: float(value) for name, value in scores.items()}


def nearest_distance(candidate: Vectors, reference: Vectors) -> npt.NDArray[np.float64]:
    """Euclidean distance of each candidate to the nearest reference, float64 (candidates,)."""
    distances: npt.NDArray[np.float64] = cdist(candidate, reference).min(axis=1)
    return distances


def neighbour_distance(
    candidate: Vectors, reference: Vectors, allowed: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """Mean Euclidean distance of each candidate to its nearest references, float64 (candidates,).

    Args:
        candidate, reference: at least one row each. The nearest :data:`NEIGHBOURS` count, or all
            where there are fewer.
        allowed: bool (candidates, references), which of them may count; everyone by default, and
            at least one for each candidate.
    """
    distances = cdist(candidate, reference)
    if allowed is not None:
        distances[~allowed] = np.inf
    nearest = np.sort(distances, axis=1)[:, :NEIGHBOURS]
    counts = np.isfinite(nearest)
    means: npt.NDArray[np.float64] = nearest.sum(axis=1, where=counts) / counts.sum(axis=1)
    return means


def diversity(vectors: Vectors) -> float:
    """Mean Euclidean distance of two images of one set; 0 where all are equal."""
    return float(pdist(vectors).mean())
