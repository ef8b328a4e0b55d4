"""What west.h5 is made from: plain arrays, which the ledger has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.iteration import BasisStates, BrokenEnsemble, Iteration, Resampled


@dataclass(frozen=True, slots=True)
class Target:
    """A bin where walkers are recycled, by a point in it; WESTPA knows no other targets.

    Attributes
    ----------
    name
        Without spaces, for WESTPA's text files.
    pcoord : ndarray of shape (n_dimensions,), float64
        Progress coordinate of the point.
    """

    name: str
    pcoord: np.ndarray


@dataclass(frozen=True, slots=True)
class Layout:
    """What is the same in all iterations of a west.h5.

    Attributes
    ----------
    n_dimensions
        Of the progress coordinate.
    pcoord_length
        Points that each walker has in an iteration, its start and its end among them.
    basis
        Where walkers start.
    targets
        One for each bin where walkers are recycled; none in equilibrium.
    """

    n_dimensions: int
    pcoord_length: int
    basis: BasisStates
    targets: tuple[Target, ...] = ()

    def __post_init__(self) -> None:
        """Refuse points that do not fit.

        Raises
        ------
        ValueError
            When there are fewer than two points, or a state has another number of dimensions.
        """
        if self.pcoord_length < 2:
            raise ValueError(f"pcoord_length {self.pcoord_length} has no room for start and end: give 2 or more")
        shapes = [self.basis.pcoord.shape[1:], *(target.pcoord.shape for target in self.targets)]
        if any(shape != (self.n_dimensions,) for shape in shapes):
            raise ValueError(f"basis and target states have shapes {shapes}, not ({self.n_dimensions},)")


@dataclass(frozen=True, slots=True)
class Binning:
    """How an iteration's walkers were put into bins, and how many were wanted in each.

    Attributes
    ----------
    mapper
        A WESTPA bin mapper.
    target_counts : ndarray of shape (n_bins,), int
        Zero in bins where walkers are recycled.
    """

    mapper: Any
    target_counts: np.ndarray


@dataclass(frozen=True, slots=True)
class Ended:
    """An iteration that ended, and what resampling made of it.

    Attributes
    ----------
    iteration
        As it began.
    pcoord : ndarray of shape (n_walkers, pcoord_length, n_dimensions), float32
        Progress coordinate of each walker from its start, by one model version.
    seconds : ndarray of shape (n_walkers,), float64
        That each took.
    resampled
        What came of it.
    binning
        By which it was resampled.
    starts : ndarray of shape (n_following, n_dimensions), float32, or None
        Progress coordinates at which the following walkers start; None where they are those of their parents' ends
        and of the basis states, because no model was trained in between.
    """

    iteration: Iteration
    pcoord: np.ndarray
    seconds: np.ndarray
    resampled: Resampled
    binning: Binning
    starts: np.ndarray | None = None

    def starts_of_following(self, basis: BasisStates) -> np.ndarray:
        """Return where the following walkers start.

        Returns
        -------
        ndarray of shape (n_following, n_dimensions), float32
        """
        if self.starts is not None:
            return np.asarray(self.starts, np.float32)
        return starts_of(self.resampled.following, basis, self.pcoord[:, -1])

    def check(self, layout: Layout) -> None:
        """Refuse arrays that do not belong together; iterations are checked when they are made or read.

        Raises
        ------
        BrokenEnsemble
            When there is not one of each per walker, or the following iteration is not the next.
        """
        n, where = len(self.iteration.weights), f"iteration {self.iteration.number}"
        shape, wanted = self.pcoord.shape, (n, layout.pcoord_length, layout.n_dimensions)
        if shape != wanted:
            raise BrokenEnsemble(f"{where}: progress coordinates of shape {shape}, where {wanted} is wanted")
        if not len(self.seconds) == len(self.resampled.endpoints) == len(self.resampled.bins) == n:
            raise BrokenEnsemble(f"{where}: {n} walkers, and not as many times, endpoints and bins")
        if self.resampled.following.number != self.iteration.number + 1:
            raise BrokenEnsemble(f"{where} is followed by {self.resampled.following.number}")


def starts_of(iteration: Iteration, basis: BasisStates, ends: np.ndarray | None = None) -> np.ndarray:
    """Return where the walkers of an iteration start: at their parents' ends, or at basis states.

    Parameters
    ----------
    ends : ndarray of shape (n_before, n_dimensions), float32, or None
        Of the walkers of the iteration before; None where there was none.

    Returns
    -------
    ndarray of shape (n_walkers, n_dimensions), float32
    """
    starts = np.empty((len(iteration.parents), basis.pcoord.shape[1]), np.float32)
    fresh = iteration.parents < 0
    if ends is not None:
        starts[~fresh] = ends[iteration.parents[~fresh]]
    basis_of = {state.number: state.basis for state in iteration.initial}
    starts[fresh] = basis.pcoord[[basis_of[number] for number in (-1 - iteration.parents[fresh]).tolist()]]
    return starts
