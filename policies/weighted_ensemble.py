"""Weighted ensemble: walkers that end are binned, recycled, split and merged into those of the next iteration.

The method is Huber and Kim's (https://doi.org/10.1016/S0006-3495(96)79552-8) as WESTPA has it; recycling from the
target to the basis states makes it a steady state (https://doi.org/10.1063/1.3306345).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from policies.driver import Driver, initial_state
from policies.iteration import (
    WEIGHT_TOLERANCE,
    BasisStates,
    BrokenEnsemble,
    Endpoint,
    InitialState,
    Iteration,
    Recycled,
    Resampled,
)
from policies.mappers import Space
from tasks.errors import BadInput


@dataclass(frozen=True, slots=True)
class Rule:
    """How an ensemble is resampled; nothing is remembered between calls.

    Attributes
    ----------
    space : Space
        The bins. Where they move (Voronoi centres, a retrained model), make another rule.
    walkers_per_bin : int
        In every bin that is reached, but for the target.
    """

    space: Space
    walkers_per_bin: int = 4

    def __post_init__(self) -> None:
        if self.walkers_per_bin < 1:
            raise BadInput(f"--walkers-per-bin {self.walkers_per_bin} keeps no walker: give at least 1")

    @property
    def counts(self) -> np.ndarray:
        """Return how many walkers are wanted in each bin, shape (n_bins,), int64; ``west.h5`` keeps them."""
        counts = np.full(self.space.n_bins, self.walkers_per_bin, np.int64)
        if (target := self.space.target_bin) is not None:
            counts[target] = 0
        return counts

    def begin(self, basis: BasisStates, rng: np.random.Generator, n_states: int | None = None) -> Iteration:
        """Return the first iteration.

        Parameters
        ----------
        rng
            Its state alone decides.
        n_states
            Initial states, drawn by the basis states' probabilities, of which walkers are made by splitting and
            merging in each bin. By default as many as walkers in a bin, or as basis states if these are more.

        Raises
        ------
        BadInput
            When a basis state lies in the target.
        """
        self._check_basis(basis)
        n = n_states or max(self.walkers_per_bin, len(basis.names))
        drawn = _draw(basis, n, rng)
        bins, _ = self.space.assign(basis.pcoord[drawn], np.full(n, 1 / n))
        reached, compact = np.unique(bins, return_inverse=True)
        walkers = Driver([self.walkers_per_bin] * len(reached), rng).begin(compact)
        first = _iteration(1, walkers, [InitialState(number, state) for number, state in enumerate(drawn.tolist())])
        first.check()
        return first

    def resample(
        self, iteration: Iteration, pcoord: np.ndarray, basis: BasisStates, rng: np.random.Generator, n_initial: int
    ) -> Resampled:
        """Return the next iteration, and what became of the walkers of this one.

        Parameters
        ----------
        pcoord : ndarray of shape (n_walkers, length, n_dimensions)
            Progress coordinate of each walker along its segment; the last of each is binned.
        rng
            Its state alone decides.
        n_initial
            Initial states made since the ensemble began, so the number of the next.

        Raises
        ------
        BadInput
            When a basis state lies in the target.
        BrokenEnsemble
            When weights, lineage or coordinates cannot be right.
        """
        iteration.check()
        self._check_basis(basis)
        ends = self._ends(iteration, pcoord)
        target = self.space.target_bin
        bins, bins_of_basis = self.space.assign(ends, iteration.weights, basis.pcoord)
        drawn = _draw(basis, int(np.count_nonzero(bins == target)) if target is not None else 0, rng)
        made = [InitialState(n_initial + n, state) for n, state in enumerate(drawn.tolist())]
        # The driver's cost grows with its bins, so it sees only those that walkers are in or begin in.
        reached = np.unique([*bins, *bins_of_basis[drawn], *([] if target is None else [target])])
        goal = None if target is None else int(np.searchsorted(reached, target))
        driver = Driver([0 if number == goal else self.walkers_per_bin for number in range(len(reached))], rng)
        starts = np.searchsorted(reached, bins_of_basis[drawn]).tolist()
        fresh = [initial_state(each.number, start) for each, start in zip(made, starts, strict=True)]
        walkers = driver.resample(iteration.number, iteration.weights, np.searchsorted(reached, bins), goal, fresh)
        recycled = _recycled(driver.new_weights)
        following = _iteration(iteration.number + 1, walkers, made)
        following.check(len(bins))
        return Resampled(following, _endpoints(len(bins), following, recycled), bins, recycled)

    def _ends(self, iteration: Iteration, pcoord: np.ndarray) -> np.ndarray:
        where, n = f"iteration {iteration.number}", len(iteration.weights)
        if pcoord.ndim != 3 or len(pcoord) != n or pcoord.shape[2] != self.space.n_dimensions or not pcoord.shape[1]:
            raise BrokenEnsemble(
                f"{where}: a progress coordinate of shape {pcoord.shape} does not fit {n} walkers in "
                f"{self.space.n_dimensions} dimensions"
            )
        ends: np.ndarray = pcoord[:, -1]
        # WESTPA bins float32, in which 1e39 is infinite too.
        with np.errstate(over="ignore"):
            finite = np.isfinite(ends.astype(np.float32)).all(axis=1)
        if len(lost := np.flatnonzero(~finite)):
            raise BrokenEnsemble(f"{where}: the progress coordinate of walker {lost[0]} is not finite at its end")
        return ends

    def _check_basis(self, basis: BasisStates) -> None:
        target = self.space.target
        if target is not None and len(inside := np.flatnonzero(target.contains(basis.pcoord))):
            raise BadInput(
                f'basis state {basis.names[inside[0]]} lies in the target "{target.expression}": walkers would be '
                "recycled without end; move the target, or take the state away"
            )


def begin_apart(basis: BasisStates, n: int, rng: np.random.Generator) -> Iteration:
    """Return a first iteration of ``n`` walkers of equal weight, drawn and not binned: for want of a model."""
    drawn = _draw(basis, n, rng).tolist()
    numbers = range(n)
    first = Iteration(
        number=1,
        weights=np.full(n, 1 / n),
        parents=-1 - np.arange(n, dtype=np.int64),
        lineage=tuple((-1 - number,) for number in numbers),
        initial=tuple(InitialState(number, state) for number, state in zip(numbers, drawn, strict=True)),
    )
    first.check()
    return first


def carry_on(iteration: Iteration) -> Iteration:
    """Return the next iteration with every walker continued, none split or merged: for want of a model to bin by."""
    n = len(iteration.weights)
    following = Iteration(
        number=iteration.number + 1,
        weights=iteration.weights.copy(),
        parents=np.arange(n, dtype=np.int64),
        lineage=tuple((walker,) for walker in range(n)),
    )
    following.check(n)
    return following


def _draw(basis: BasisStates, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return basis states drawn by their probabilities."""
    return rng.choice(len(basis.names), size=n, p=basis.probabilities / basis.probabilities.sum())


def _iteration(number: int, walkers: list[Any], made: list[InitialState]) -> Iteration:
    weights = np.array([each.weight for each in walkers])
    total = math.fsum(weights)
    if abs(total - 1) > WEIGHT_TOLERANCE:
        raise BrokenEnsemble(f"iteration {number}: weights sum to one {total - 1:+.1e}")
    return Iteration(
        number=number,
        # Rounding would add up over thousands of iterations.
        weights=weights / total,
        parents=np.array([each.parent_id for each in walkers], np.int64),
        lineage=tuple(tuple(sorted(int(parent) for parent in each.wtg_parent_ids)) for each in walkers),
        initial=tuple(made),
    )


def _recycled(entries: list[Any]) -> tuple[Recycled, ...]:
    each = (Recycled(int(entry.prev_seg_id), float(entry.weight), int(entry.initial_state_id)) for entry in entries)
    return tuple(sorted(each, key=attrgetter("initial")))


def _endpoints(n: int, following: Iteration, recycled: tuple[Recycled, ...]) -> np.ndarray:
    """Return what became of each walker, from who follows whom.

    WESTPA marks as merged a walker that goes on where it was split and two of its copies were merged again.
    """
    endpoints = np.full(n, Endpoint.MERGED, np.uint8)
    endpoints[following.parents[following.parents >= 0]] = Endpoint.CONTINUES
    endpoints[[each.walker for each in recycled]] = Endpoint.RECYCLED
    return endpoints
