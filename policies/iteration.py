"""What an iteration of a weighted ensemble is, and what resampling makes of it: arrays, free of queues and files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

# Weights are sums of products of doubles; what is farther from one was lost or counted twice.
WEIGHT_TOLERANCE = 1e-12


class BrokenEnsemble(Exception):
    """Weights or lineage cannot be right: to go on would give rates that mean nothing."""


class Endpoint(IntEnum):
    """What became of a walker at the end of its iteration; the numbers are WESTPA's."""

    CONTINUES = 1
    MERGED = 2
    RECYCLED = 3


@dataclass(frozen=True, slots=True)
class BasisStates:
    """Where walkers start, and are put back to when they reach the target.

    Attributes
    ----------
    names : tuple of str
        Of their files, or of the system.
    probabilities : ndarray of shape (n_states,), float64
        Sum to one.
    pcoord : ndarray of shape (n_states, n_dimensions), float64
        Progress coordinate of each.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    pcoord: np.ndarray


@dataclass(frozen=True, slots=True)
class InitialState:
    """A copy of a basis state at which one walker begins; ``number`` counts from 0 over the whole ensemble."""

    number: int
    basis: int


@dataclass(frozen=True, slots=True)
class Iteration:
    """The walkers of an ensemble as an iteration begins.

    Attributes
    ----------
    number : int
        From 1.
    weights : ndarray of shape (n_walkers,), float64
        Sum to one.
    parents : ndarray of shape (n_walkers,), int64
        Walker of the iteration before that each continues; ``-1 - i`` where it begins at initial state ``i``.
    lineage : tuple of tuple of int
        Walkers of the iteration before whose weight each carries, as WESTPA's weight graph has them: its parent among
        them; where it begins at an initial state those that were recycled to it and merged with it, or in the first
        iteration the initial state like ``parents``.
    initial : tuple of InitialState
        Those made for this iteration.
    """

    number: int
    weights: np.ndarray
    parents: np.ndarray
    lineage: tuple[tuple[int, ...], ...]
    initial: tuple[InitialState, ...] = ()

    def check(self, n_before: int | None = None) -> None:
        """Refuse walkers that cannot be right.

        Parameters
        ----------
        n_before
            Walkers of the iteration before; None where it is not at hand.

        Raises
        ------
        BrokenEnsemble
            When weights are not positive or do not sum to one, or a parent is nobody.
        """
        where, made = f"iteration {self.number}", {state.number for state in self.initial}
        if not len(self.weights) or not np.all(self.weights > 0) or not np.all(np.isfinite(self.weights)):
            raise BrokenEnsemble(f"{where}: every walker needs a positive weight, and there must be one")
        if abs(total := float(np.sum(self.weights)) - 1) > WEIGHT_TOLERANCE:
            raise BrokenEnsemble(f"{where}: weights sum to one {total:+.1e}")
        if not len(self.weights) == len(self.parents) == len(self.lineage):
            raise BrokenEnsemble(f"{where}: {len(self.weights)} weights, {len(self.parents)} parents")
        for parent, carried in zip(self.parents.tolist(), self.lineage, strict=True):
            if parent not in carried and (parent >= 0 or not carried):
                raise BrokenEnsemble(f"{where}: walker {parent} is a parent whose weight nobody carries")
            if parent < 0 and -1 - parent not in made:
                raise BrokenEnsemble(f"{where}: initial state {-1 - parent} was not made for it")
            if n_before is not None and not all(before < n_before for before in carried):
                raise BrokenEnsemble(f"{where}: a parent among {carried} is none of the {n_before} walkers before")


@dataclass(frozen=True, slots=True)
class Recycled:
    """A walker that reached the target, and the initial state (its number) at which its weight begins anew."""

    walker: int
    weight: float
    initial: int


@dataclass(frozen=True, slots=True)
class Resampled:
    """What resampling made of the walkers of an iteration that ended.

    Attributes
    ----------
    following : Iteration
        The next.
    endpoints : ndarray of shape (n_walkers,), uint8
        `Endpoint` of each walker of the one that ended.
    bins : ndarray of shape (n_walkers,), int64
        Bin of each at its end.
    recycled : tuple of Recycled
        Those that reached the target.
    """

    following: Iteration
    endpoints: np.ndarray
    bins: np.ndarray
    recycled: tuple[Recycled, ...] = ()

    @property
    def flux(self) -> float:
        """Weight that reached the target in the iteration."""
        return float(sum(each.weight for each in self.recycled))
