"""Markov state models of what a campaign sampled: from stretches of dynamics that nobody steered within.

Where a segment began was chosen, so how often a state was seen says nothing of its probability. Where a frame went
within a lag is dynamics, whoever chose where it began: transition counts are right given the state they start in, as
far as states forget within the lag how they were entered.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

# Of kinetic coordinates; k-means finds little in more.
_MOST_DIMENSIONS = 4

# On average at least, or there is little to count.
_FRAMES_PER_STATE = 20


@dataclass(frozen=True, slots=True)
class Pairs:
    """Frames and what became of them a lag later.

    Attributes
    ----------
    start, end : ndarray of shape (n_pairs, ...)
        Their states, or whatever else they are described by.
    segment : ndarray of shape (n_pairs,), int64
        In which each pair starts.
    """

    start: np.ndarray
    end: np.ndarray
    segment: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def stretches(segments: pd.DataFrame) -> list[list[int]]:
    """Return segments that carry on from one another, in their order; each is in one stretch only.

    A segment carries on where nobody steered it and it began at the last frame of its parent; of several that do, the
    first. Segments of a weighted ensemble are alone: which walkers go on is decided by where they have come to, so
    pairs that reach over an iteration's end would favour those that were kept.

    Parameters
    ----------
    segments
        As `campaign.trace.Run.segments` has them.
    """
    last = segments.n_frames - 1
    follower: dict[int, int] = {}
    free = ~segments.steered.astype(bool) & (segments.iteration == 0)
    carried_on = segments[free & segments.parent_id.notna()].sort_index()
    for segment_id, parent, frame in zip(
        carried_on.index, carried_on.parent_id, carried_on.parent_frame, strict=True
    ):
        if parent in last.index and frame == last[parent]:
            follower.setdefault(int(parent), int(segment_id))
    joined = set(follower.values())
    found = []
    for first in sorted(set(segments.index) - joined):
        stretch = [int(first)]
        while stretch[-1] in follower:
            stretch.append(follower[stretch[-1]])
        found.append(stretch)
    return found


def lagged(paths: Mapping[int, np.ndarray], joined: Sequence[Sequence[int]], lag: int) -> Pairs:
    """Return all pairs of frames a lag apart, within stretches only.

    Parameters
    ----------
    paths
        What describes a segment's frames, (n_frames, ...), by segment; one that is missing cuts its stretch.
    joined
        Stretches, as `stretches` returns them.
    lag
        In frames, from 1. A stretch that is no longer has no pairs.
    """
    like = next(iter(paths.values()), np.empty(0, np.int64))
    starts, ends, owners = [like[:0]], [like[:0]], [np.empty(0, np.int64)]
    for whole in _whole(paths, joined):
        path = np.concatenate([paths[segment] for segment in whole])
        owner = np.repeat(np.asarray(whole, np.int64), [len(paths[segment]) for segment in whole])
        starts.append(path[:-lag])
        ends.append(path[lag:])
        owners.append(owner[:-lag])
    return Pairs(np.concatenate(starts), np.concatenate(ends), np.concatenate(owners))


def count(pairs: Pairs, n_states: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the count matrix (n_states, n_states), float64, of pairs of states; weighted where weights are given."""
    flat = np.bincount(pairs.start * n_states + pairs.end, weights, n_states**2)
    return np.asarray(flat.reshape(n_states, n_states), float)


def _whole(paths: Mapping[int, np.ndarray], joined: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return stretches cut where a segment is missing."""
    found = []
    for stretch in joined:
        part: list[int] = []
        for segment in stretch:
            if segment in paths:
                part.append(segment)
            elif part:
                found.append(part)
                part = []
        if part:
            found.append(part)
    return found


def stationary(counts: np.ndarray) -> np.ndarray:
    """Return the stationary distribution of the reversible model of most likelihood.

    Parameters
    ----------
    counts : ndarray of shape (n_states, n_states), float64

    Returns
    -------
    ndarray of shape (n_states,), float64
        They sum to one over the largest set of states that all reach each other; NaN beyond it, where counts do not
        tell.
    """
    found = np.full(len(counts), np.nan)
    model, symbols = _model(counts)
    if model is not None:
        found[symbols] = model.stationary_distribution
    return found


def timescales(counts: np.ndarray, lag_ps: float, n: int) -> np.ndarray:
    """Return the slowest implied timescales of the same model (n,), ps; NaN where it has fewer that are finite."""
    from deeptime.util.exceptions import SpectralWarning

    found = np.full(n, np.nan)
    model, _ = _model(counts)
    if model is not None:
        with warnings.catch_warnings():
            # Of few counts some go to and fro only: that is no timescale, and nothing to warn of.
            warnings.simplefilter("ignore", SpectralWarning)
            told = model.timescales(k=min(n, model.n_states - 1)) * lag_ps
        found[: len(told)] = np.where(np.isfinite(told), told, np.nan)
    return found


def _model(counts: np.ndarray):  # type: ignore[no-untyped-def]  # deeptime has no types
    """Return deeptime's model on the largest connected set, and which states these are; None where there is none."""
    from deeptime.markov import TransitionCountModel
    from deeptime.markov.msm import MaximumLikelihoodMSM

    if not counts.any():
        return None, np.empty(0, np.int64)
    connected = TransitionCountModel(counts, counting_mode="sliding").submodel_largest()
    if connected.n_states == 1:
        return None, connected.state_symbols
    model = MaximumLikelihoodMSM(reversible=True, maxiter=10_000).fit_fetch(connected)
    return model, connected.state_symbols


def states_of(
    frames: Sequence[Mapping[int, np.ndarray]], pairs: Pairs, n_states: int, seed: int
) -> tuple[list[dict[int, np.ndarray]], int]:
    """Return the state of each frame, the same states for several runs, and how many there are.

    Features are turned into kinetic coordinates (VAMP with a kinetic map, which asks for no equilibrium), so that
    what moves slowly is told apart, and clustered by k-means. States are numbered along the slowest coordinate.

    Parameters
    ----------
    frames
        Features of the frames (n_frames, n_features) of each segment, for each run.
    pairs
        Of features, to find the slow coordinates by.
    """
    from deeptime.clustering import KMeans
    from deeptime.decomposition import VAMP

    model = VAMP(dim=min(_MOST_DIMENSIONS, pairs.start.shape[1]), scaling="kinetic_map").fit_fetch(
        (pairs.start.astype(float), pairs.end.astype(float))
    )
    slow = [{segment: model.transform(rows.astype(float)) for segment, rows in run.items()} for run in frames]
    every = np.concatenate([rows for run in slow for rows in run.values()])
    n_states = min(n_states, max(2, len(every) // _FRAMES_PER_STATE), len(np.unique(every, axis=0)))
    clusters = KMeans(n_states, fixed_seed=seed, n_jobs=1, max_iter=500).fit_fetch(every)
    rank = np.argsort(np.argsort(clusters.cluster_centers[:, 0]))
    return [{segment: rank[clusters.transform(rows)] for segment, rows in run.items()} for run in slow], n_states


def resampled(pairs: Pairs, n_states: int, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return count matrices of as many segments drawn with replacement, each with the pairs that start in it.

    Pairs of neighbours in a stretch are correlated as well, which this leaves out: intervals are somewhat too narrow
    where stretches are long.
    """
    segments, owner = np.unique(pairs.segment, return_inverse=True)
    if not len(segments):
        return []
    drawn = rng.multinomial(len(segments), np.full(len(segments), 1 / len(segments)), size=n)
    return [count(pairs, n_states, times[owner].astype(float)) for times in drawn]


def interval(drawn: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of 95 % intervals of values drawn again and again; NaN where most drawings have none."""
    values = np.asarray(drawn, float)
    told = mostly_told(values)
    ends = np.full((2, *values.shape[1:]), np.nan)
    if told.any():
        ends[:, told] = np.nanquantile(values[:, told], [0.025, 0.975], axis=0)
    return ends[0], ends[1]


def mostly_told(drawn: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return where more than half of the drawings have a value: for states, which hang together whatever is drawn."""
    return np.asarray(np.isfinite(drawn).mean(axis=0) > 0.5)


def among(probability: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return probabilities among some states (a mask): they sum to one over these; NaN elsewhere."""
    inside = np.where(states, probability, np.nan)
    return np.asarray(inside / np.nansum(inside))
