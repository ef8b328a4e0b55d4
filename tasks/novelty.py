"""How new a frame is: the density of known frames around it in the latent space."""

from __future__ import annotations

import numpy as np

from tasks.messages import Novelty


def novelty(latent: np.ndarray, n_neighbours: int, measure: Novelty) -> np.ndarray:
    """Return how sparse the surroundings of each frame are among all of them; larger is newer.

    Parameters
    ----------
    latent : ndarray of shape (n_frames, latent), float32
        Embeddings by one model version.
    n_neighbours
        k; where there are fewer frames, all the others.
    measure
        ``sparsity``: distance to the k-th nearest neighbour. ``lof``: local outlier factor (Breunig et al. 2000).

    Returns
    -------
    ndarray of shape (n_frames,), float64
    """
    n_neighbours = min(n_neighbours, len(latent) - 1)
    if n_neighbours < 1:
        return np.zeros(len(latent))
    if measure == "lof":
        from sklearn.neighbors import LocalOutlierFactor

        fitted = LocalOutlierFactor(n_neighbors=n_neighbours).fit(latent)
        return np.asarray(-fitted.negative_outlier_factor_, dtype=np.float64)
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=n_neighbours).fit(latent).kneighbors()
    return np.asarray(distances[:, -1])
