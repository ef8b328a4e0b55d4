"""Iterations of weighted ensembles in the ledger: walkers, weights, parents, coordinates, and who computed them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from campaign.ledger import Ledger
from campaign.west.record import Ended
from policies.iteration import BrokenEnsemble, Endpoint, InitialState, Iteration, Recycled, Resampled

_WALKERS = (
    "SELECT walker, segment_id, weight, parent, lineage, endpoint, bin, recycled_to, seconds, pcoord FROM walker"
    " WHERE replica = ? AND iteration = ? ORDER BY walker"
)


@dataclass(frozen=True, slots=True)
class Boundary:
    """An iteration that ended, with what only the campaign knows of it.

    Attributes
    ----------
    segment_ids
        Of its walkers.
    model_version
        By which all of its coordinates were computed.
    """

    replica: int
    ended: Ended
    segment_ids: tuple[int, ...]
    model_version: int


@dataclass(frozen=True, slots=True)
class Past:
    """An iteration as the ledger has it, by which `Ended` can be made again."""

    iteration: Iteration
    segment_ids: tuple[int, ...]
    model_version: int
    pcoord: np.ndarray
    endpoints: np.ndarray
    bins: np.ndarray
    recycled: tuple[Recycled, ...]
    seconds: np.ndarray

    def resampled(self, following: Iteration) -> Resampled:
        """Return what came of it."""
        following.check(len(self.bins))
        return Resampled(following, self.endpoints, self.bins, self.recycled)


def record(ledger: Ledger, boundary: Boundary) -> None:
    """Write an iteration, whose weights and lineage were checked when it was made, into the open transaction.

    Raises
    ------
    BrokenEnsemble
        When there is not one segment and one coordinate per walker.
    """
    ended, replica = boundary.ended, boundary.replica
    iteration, resampled = ended.iteration, ended.resampled
    number, n = iteration.number, len(iteration.weights)
    if not len(boundary.segment_ids) == len(ended.pcoord) == n:
        raise BrokenEnsemble(f"iteration {number}: {n} walkers, and not as many segments and coordinates")
    n_dimensions = ended.pcoord.shape[2]
    flux = resampled.flux
    ledger.insert("iteration", [(replica, number, boundary.model_version, n, n_dimensions, flux, time.time())])
    ledger.insert("initial_state", ((replica, number, state.number, state.basis) for state in iteration.initial))
    recycled_to = {each.walker: each.initial for each in resampled.recycled}
    ledger.insert(
        "walker",
        (
            (
                replica, number, row, boundary.segment_ids[row], float(iteration.weights[row]),
                int(iteration.parents[row]), json.dumps(iteration.lineage[row]), int(resampled.endpoints[row]),
                int(resampled.bins[row]), recycled_to.get(row), float(ended.seconds[row]),
                np.ascontiguousarray(ended.pcoord[row], np.float32).tobytes(),
            )
            for row in range(n)
        ),
    )  # fmt: skip


def n_ended(ledger: Ledger, replica: int) -> int:
    """Return how many iterations of an ensemble have ended."""
    ((n,),) = ledger.select("SELECT count(*) FROM iteration WHERE replica = ?", replica)
    return int(n)


def fluxes(ledger: Ledger, replica: int) -> np.ndarray:
    """Return the weight that reached the target in each iteration, shape (n_iterations,), float64."""
    rows = ledger.select("SELECT flux FROM iteration WHERE replica = ? ORDER BY iteration", replica)
    return np.array([flux for (flux,) in rows])


def past(ledger: Ledger, replica: int, first: int = 1) -> Iterator[Past]:
    """Yield the iterations of an ensemble that ended, from one on.

    Raises
    ------
    BrokenEnsemble
        When one cannot be right.
    """
    rows = ledger.select(
        "SELECT iteration, model_version, n_dimensions FROM iteration WHERE replica = ? AND iteration >= ?"
        " ORDER BY iteration",
        replica,
        first,
    )
    for number, model_version, n_dimensions in rows:
        yield _past(ledger, replica, number, model_version, n_dimensions)


def _past(ledger: Ledger, replica: int, number: int, model_version: int, n_dimensions: int) -> Past:
    walkers = ledger.select(_WALKERS, replica, number)
    if not walkers:
        raise BrokenEnsemble(f"iteration {number}: it has no walkers")
    _, segments, weights, parents, lineage, endpoints, bins, recycled_to, seconds, pcoord = zip(*walkers, strict=True)
    made = ledger.select(
        "SELECT number, basis FROM initial_state WHERE replica = ? AND iteration = ? ORDER BY number", replica, number
    )
    iteration = Iteration(
        number=number,
        weights=np.array(weights),
        parents=np.array(parents, np.int64),
        lineage=tuple(tuple(json.loads(carried)) for carried in lineage),
        initial=tuple(InitialState(*state) for state in made),
    )
    iteration.check()
    recycled = (
        Recycled(row, weights[row], int(initial)) for row, initial in enumerate(recycled_to) if initial is not None
    )
    told = Past(
        iteration=iteration,
        segment_ids=segments,
        model_version=model_version,
        pcoord=np.stack([np.frombuffer(packed, np.float32).reshape(-1, n_dimensions) for packed in pcoord]),
        endpoints=np.array(endpoints, np.uint8),
        bins=np.array(bins, np.int64),
        recycled=tuple(sorted(recycled, key=lambda each: each.initial)),
        seconds=np.array(seconds),
    )
    if len(told.recycled) != int(np.count_nonzero(told.endpoints == Endpoint.RECYCLED)):
        raise BrokenEnsemble(f"iteration {number}: not every recycled walker has an initial state")
    return told
