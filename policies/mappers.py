"""Bins as a mapper made of WESTPA's own classes, so that its pickle in ``west.h5`` opens in any WESTPA."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import minkowski_distance_p
from westpa.core.binning import MABBinMapper, RectilinearBinMapper, RecursiveBinMapper, VoronoiBinMapper

from policies.bins import MOST_BINS, Adaptive, Bins, Rectilinear, Voronoi
from policies.target import Target, inside
from tasks.errors import BadInput


@dataclass(frozen=True, slots=True)
class Space:
    """Bins as WESTPA has them, and what its mapper does not tell.

    Attributes
    ----------
    mapper
        WESTPA's; assigns float32.
    n_dimensions : int
    target : Target or None
        Its box is a bin of its own; all others lie outside it.
    adaptive : bool
        Whether bins follow from the walkers, and so mean nothing for any other set of points.
    """

    mapper: Any
    n_dimensions: int
    target: Target | None = None
    adaptive: bool = False

    @property
    def n_bins(self) -> int:
        """Return how many bins there are, most of them perhaps never reached."""
        return int(self.mapper.nbins)

    @property
    def target_bin(self) -> int | None:
        """Return the number of the target's bin; None without target."""
        if self.target is None:
            return None
        return int(self.mapper.assign(np.array([self.target.point], np.float32))[0])

    def assign(
        self, ends: np.ndarray, weights: np.ndarray, others: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the bins of walkers, and those that other points have among them.

        WESTPA bins a recycled walker's new start on its own, where adaptive bins shrink to it; here the walkers that
        ended make the bins for both.

        Parameters
        ----------
        ends : ndarray of shape (n_walkers, n_dimensions)
        weights : ndarray of shape (n_walkers,)
            Of which adaptive bins find bottlenecks.
        others : ndarray of shape (n_others, n_dimensions)

        Returns
        -------
        tuple of ndarray of shape (n_walkers,) and (n_others,), int64
        """
        others = np.empty((0, self.n_dimensions)) if others is None else others
        points = np.concatenate([ends, others]).astype(np.float32)
        if self.adaptive:
            # What WESTPA's MABDriver sends: coordinates, weight, and whether it is an end, of which bins are made.
            ours = np.concatenate([np.ones(len(ends)), np.zeros(len(others))])
            carried = np.concatenate([weights, np.zeros(len(others))])
            points = np.column_stack([points, carried, ours]).astype(np.float32)
        # A weight below 1e-45 is zero in float32, and MAB takes its logarithm.
        with np.errstate(divide="ignore", invalid="ignore"):
            bins = self.mapper.assign(points).astype(np.int64)
        return bins[: len(ends)], bins[len(ends) :]


def build(bins: Bins, target: Target | None, n_dimensions: int, centres: np.ndarray | None = None) -> Space:
    """Return the bins as WESTPA has them.

    The bins without target alone; with one, a grid of the target's edges, whose cells other than the target hold the
    bins. An adaptive mapper works in each such cell on its own.

    Parameters
    ----------
    centres : ndarray of shape (n_centres, n_dimensions)
        Of Voronoi bins, as `choose_centres` returns them.

    Raises
    ------
    BadInput
        When there are more bins than WESTPA can number.
    """
    inner, adaptive = _mapper(bins, centres), isinstance(bins, Adaptive)
    # Of adaptive bins WESTPA adds some of its own.
    if inner.nbins > MOST_BINS:
        raise BadInput(f"--bins makes {inner.nbins} bins, and WESTPA numbers {MOST_BINS} at most: give fewer")
    if target is None:
        return Space(inner, n_dimensions, None, adaptive)
    edges = [_distinct(-math.inf, low, high, math.inf) for low, high in zip(target.low, target.high, strict=True)]
    mapper = RecursiveBinMapper(RectilinearBinMapper(edges))
    cells = [[inside(*ends) for ends in itertools.pairwise(each)] for each in edges]
    around = [point for point in itertools.product(*cells) if not target.contains(np.array(point))]
    if (n_bins := 1 + len(around) * int(inner.nbins)) > MOST_BINS:
        raise BadInput(
            f"--bins and --target make {n_bins} bins, {inner.nbins} in each of {len(around)} cells around the "
            f"target: give at most {MOST_BINS // len(around)} bins"
        )
    for point in around:
        mapper.add_mapper(inner, list(point))
    return Space(mapper, n_dimensions, target, adaptive)


def choose_centres(pcoord: np.ndarray, n: int) -> np.ndarray:
    """Return centres of Voronoi bins, spread evenly over the points rather than by their density.

    Each next centre is the point farthest from those before, the first the one nearest to the mean (Gonzalez,
    https://doi.org/10.1016/0304-3975(85)90224-5).

    Parameters
    ----------
    pcoord : ndarray of shape (n_points, n_dimensions)
    n
        Wanted; of fewer distinct points all become centres.

    Returns
    -------
    ndarray of shape (n_centres, n_dimensions), float32
        All different, so that each maps to itself.
    """
    single = np.unique(np.asarray(pcoord).astype(np.float32), axis=0)
    points = single.astype(np.float64)
    chosen = [int(np.argmin(_squares(points, points.mean(axis=0))))]
    nearest = _squares(points, points[chosen[0]])
    # Points whose squared distance is nothing in float32 are one centre.
    while len(chosen) < n and np.float32(nearest.max()) > 0:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, _squares(points, points[chosen[-1]]))
    centres: np.ndarray = single[chosen]
    return centres


def _mapper(bins: Bins, centres: np.ndarray | None) -> Any:
    match bins:
        case Rectilinear():
            return RectilinearBinMapper(bins.edges)
        case Adaptive():
            mapper = MABBinMapper(list(bins.n))
            # WESTPA's hold an address, and so give each process a hash of its own for the same bins.
            mapper.labels = [f"adaptive bin {number}" for number in range(mapper.nbins)]
            return mapper
        case Voronoi():
            if centres is None:
                raise ValueError("Voronoi bins need centres")
            return VoronoiBinMapper(_distance(), np.asarray(centres, np.float32))


def _distance() -> Any:
    """Return the squared distance of a point to centres, in float32, which WESTPA's loop demands.

    A function of ours could not be unpickled without us; numpy and scipy lie beside every WESTPA.
    """
    return np.vectorize(minkowski_distance_p, otypes=[np.float32], signature="(d),(n,d)->(n)")


def _squares(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    squares: np.ndarray = np.sum((points - centre) ** 2, axis=1)
    return squares


def _distinct(*edges: float) -> list[float]:
    return sorted(set(edges))
