"""The reference set: what inference remembers of all frames so far, bounded however long the campaign.

It holds a uniform sample of the frames seen (what novelty is measured against and training learns from), a *frontier*
of whole frames that segments may start from, the cells visited (coverage), and the first principal components.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tasks.messages import Nearest
from tasks.models import Model

Ids = np.ndarray
"""(n, 2) int64: segment and frame within it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Frames as the model sees them.

    Attributes
    ----------
    ids : ndarray of shape (n, 2), int64
        Segment and frame of each.
    points : ndarray of shape (n, n_points, 3), float32
        Selected coordinates in nm, neither aligned nor scaled.
    latent : ndarray of shape (n, latent), float32
        Their embedding by the model version of the reference set; empty in the second axis where there is none.
    """

    ids: Ids
    points: np.ndarray
    latent: np.ndarray

    def take(self, rows: np.ndarray) -> Sample:
        """Return the frames at these rows."""
        return Sample(self.ids[rows], self.points[rows], self.latent[rows])

    def append(self, other: Sample) -> Sample:
        """Return these frames followed by others."""
        return Sample(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.points, other.points]),
            np.concatenate([self.latent, other.latent]),
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """State of the learning side, made anew by each inference.

    Attributes
    ----------
    number
        Counts inferences from 1; 0 is the empty set.
    model_version
        Model of every ``latent``.
    n_seen
        Frames of the campaign that were looked at.
    sample
        Uniform over the frames seen.
    frontier, frontier_positions
        Frames to start from, and their coordinates (n, n_atoms, 3) float32 in nm.
    visited : ndarray of bool
        Cells visited (`tasks.features`).
    pca : ndarray of uint8
        Model of principal components fitted to the first frames, packed; empty before that.
    frontier_boxes : ndarray of shape (n, 3, 3), float32
        Box vectors of the frontier in nm; None where the system is not periodic.
    nearest
        Of the frames seen, to the system's target; None where there is none.
    """

    number: int
    model_version: int
    n_seen: int
    sample: Sample
    frontier: Sample
    frontier_positions: np.ndarray
    visited: np.ndarray
    pca: np.ndarray
    frontier_boxes: np.ndarray | None = None
    nearest: Nearest | None = None

    @classmethod
    def empty(cls, n_points: int, n_atoms: int, latent: int, visited: np.ndarray) -> ReferenceSet:
        """Return the set before any frame was seen."""
        nothing = Sample(
            np.empty((0, 2), np.int64),
            np.empty((0, n_points, 3), np.float32),
            np.empty((0, latent), np.float32),
        )
        return cls(0, 0, 0, nothing, nothing, np.empty((0, n_atoms, 3), np.float32), visited, np.empty(0, np.uint8))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the named arrays that travel and are kept."""
        return {
            "counts": np.array([self.number, self.model_version, self.n_seen], np.int64),
            "ids": self.sample.ids,
            "points": self.sample.points,
            "latent": self.sample.latent,
            "frontier_ids": self.frontier.ids,
            "frontier_points": self.frontier.points,
            "frontier_latent": self.frontier.latent,
            "frontier_positions": self.frontier_positions,
            "visited": self.visited,
            "pca": self.pca,
            **({} if self.frontier_boxes is None else {"frontier_boxes": self.frontier_boxes}),
            **({} if self.nearest is None else _nearest_arrays(self.nearest)),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> ReferenceSet:
        """Return the set that `to_arrays` described."""
        number, model_version, n_seen = (int(count) for count in arrays["counts"])
        return cls(
            number,
            model_version,
            n_seen,
            Sample(arrays["ids"], arrays["points"], arrays["latent"]),
            Sample(arrays["frontier_ids"], arrays["frontier_points"], arrays["frontier_latent"]),
            arrays["frontier_positions"],
            arrays["visited"],
            arrays["pca"],
            arrays.get("frontier_boxes"),
            _nearest(arrays) if "nearest_id" in arrays else None,
        )

    def embedded_by(self, model: Model, model_version: int) -> ReferenceSet:
        """Return the set with embeddings of this model version, so that versions never mix."""
        if self.model_version == model_version and self.sample.latent.shape[1] == model.latent:
            return self
        return replace(
            self,
            model_version=model_version,
            sample=replace(self.sample, latent=model.embed(self.sample.points)),
            frontier=replace(self.frontier, latent=model.embed(self.frontier.points)),
        )


def _nearest_arrays(nearest: Nearest) -> dict[str, np.ndarray]:
    return {
        "nearest_id": np.array([nearest.segment_id, nearest.frame], np.int64),
        "nearest_rmsd": np.array([nearest.rmsd_nm]),
    }


def _nearest(arrays: dict[str, np.ndarray]) -> Nearest:
    segment_id, frame = (int(number) for number in arrays["nearest_id"])
    return Nearest(segment_id, frame, float(arrays["nearest_rmsd"][0]))


def reservoir(n_kept: int, n_seen: int, n_new: int, capacity: int, rng: np.random.Generator) -> np.ndarray:
    """Return which rows of (kept, then new) stay, so that each frame ever seen is kept with equal chance.

    Algorithm R (Vitter 1985) for a batch of ``n_new`` frames after ``n_seen``.

    Returns
    -------
    ndarray of shape (<= capacity,), int64
        Rows of the concatenation of the kept and the new frames.
    """
    rows = list(range(n_kept))
    for new in range(n_new):
        if len(rows) < capacity:
            rows.append(n_kept + new)
            continue
        place = int(rng.integers(n_seen + new + 1))
        if place < capacity:
            rows[place] = n_kept + new
    return np.array(rows, dtype=np.int64)
