"""What of a system's coordinates tasks look at: which atoms, how they hang together, what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.periodic import make_whole


@dataclass(frozen=True, slots=True, eq=False)
class Indices:
    """The arrays of `tasks.prepared.PreparedSystem` of the same names."""

    features: np.ndarray
    phi: np.ndarray
    psi: np.ndarray
    n_atoms: int
    feature_tree: np.ndarray | None
    target: np.ndarray | None
    box: np.ndarray | None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Indices:
        """Return those of a prepared system, as it travels."""
        return cls(
            arrays["feature_indices"],
            arrays["phi_indices"],
            arrays["psi_indices"],
            len(arrays["positions"]),
            arrays.get("feature_tree"),
            arrays.get("target"),
            arrays.get("box"),
        )

    def points(self, positions: np.ndarray, boxes: np.ndarray | None) -> np.ndarray:
        """Return frames as a model sees them.

        Parameters
        ----------
        positions : ndarray of shape (n_frames, n_atoms, 3)
            In nm.
        boxes : ndarray of shape (n_frames, 3, 3)
            Box vectors in nm; None where the system is not periodic.

        Returns
        -------
        ndarray of shape (n_frames, n_features, 3)
            In nm, whole.
        """
        points = positions[:, self.features]
        if boxes is None or self.feature_tree is None:
            return points
        # Or a molecule that leaves the box would seem to change its shape.
        return make_whole(points, boxes, self.feature_tree)
