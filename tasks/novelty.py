"""How new a frame is: the density of known frames around it in the latent space."""

from __future__ import annotations

from math import isqrt

import numpy as np

from tasks.messages import Novelty

# Clusters of `least-counts`: the square root of half as many frames, within these bounds.
_FEWEST_CLUSTERS = 2
_MOST_CLUSTERS = 100


def novelty(latent: np.ndarray, n_neighbours: int, measure: Novelty, rng: np.random.Generator) -> np.ndarray:
    """Return how sparse the surroundings of each frame are among all of them; larger is newer.

    Parameters
    ----------
    latent : ndarray of shape (n_frames, latent), float32
        Embeddings by one model version.
    n_neighbours
        k; where there are fewer frames, all the others.
    measure
        ``sparsity``: distance to the k-th nearest neighbour. ``lof``: local outlier factor (Breunig et al. 2000).
        ``least-counts``: minus the frames in its cluster (Bowman, Ensign and Pande 2010), of equals the sparser.
    rng
        Of where clusters are first looked for.

    Returns
    -------
    ndarray of shape (n_frames,), float64
    """
    n_neighbours = min(n_neighbours, len(latent) - 1)
    if n_neighbours < 1:
        return np.zeros(len(latent))
    if measure == "lof":
        return _outlier_factor(latent, n_neighbours)
    sparsity = _sparsity(latent, n_neighbours)
    return sparsity if measure == "sparsity" else _least_counts(latent, sparsity, rng)


def _outlier_factor(latent: np.ndarray, n_neighbours: int) -> np.ndarray:
    from sklearn.neighbors import LocalOutlierFactor

    fitted = LocalOutlierFactor(n_neighbors=n_neighbours).fit(latent)
    return np.asarray(-fitted.negative_outlier_factor_, dtype=np.float64)


def _sparsity(latent: np.ndarray, n_neighbours: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=n_neighbours).fit(latent).kneighbors()
    return np.asarray(distances[:, -1])


def _least_counts(latent: np.ndarray, sparsity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from sklearn.cluster import KMeans

    wanted = min(max(isqrt(len(latent) // 2), _FEWEST_CLUSTERS), _MOST_CLUSTERS)
    # Equal frames make fewer clusters.
    n_clusters = min(wanted, len(np.unique(latent, axis=0)))
    means = KMeans(n_clusters, n_init=1, random_state=int(rng.integers(2**31)))
    cluster = means.fit_predict(latent)
    counts = np.bincount(cluster)[cluster]
    # A fraction below 1 orders frames within a count, and moves none to another.
    return np.asarray(sparsity / (1 + sparsity.max()) - counts)
