"""WESTPA's weighted-ensemble driver, made to depend on nothing but the generator that it is given.

Its bins are Python sets, and segments hash by their address: the order in which walkers of equal weight are split,
merged or recycled changes from process to process. Here a segment hashes by its number. The resampling is WESTPA's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import numpy as np
from westpa.core.binning import RectilinearBinMapper
from westpa.core.segment import Segment
from westpa.core.states import InitialState, TargetState
from westpa.core.systems import WESTSystem
from westpa.core.we_driver import WEDriver
from westpa.core.yamlcfg import YAMLConfig


class Numbered(Segment):
    """A segment whose place in a set follows from its number."""

    number: int

    def __hash__(self) -> int:
        return self.number


class _Kept(dict[int, Any]):
    """Initial states in use, from which none is taken.

    WESTPA frees the state of a recycled walker that is merged out, and raises KeyError where the walker had been
    split and a second copy goes the same way. Every state is made for one iteration here, so none has to be freed.
    """

    def pop(self, key: int, *default: Any) -> Any:
        return self[key]


class _Defaults(YAMLConfig):
    """WESTPA's defaults; what a user wrote for WESTPA in the home directory is not ours."""

    preload_config_files: tuple[str, ...] = ()


class Driver(WEDriver):
    """WESTPA's driver for walkers whose bins are known: their number is the only coordinate that it sees.

    Parameters
    ----------
    counts : sequence of int
        Walkers wanted in each bin; 0 in the target's.
    """

    # WESTPA splits a walker heavier than one; by rounding the only walker there is may be just that.
    largest_allowed_weight = math.inf

    def __init__(self, counts: Sequence[int], rng: np.random.Generator) -> None:
        rc = SimpleNamespace(config=_Defaults())
        system = WESTSystem(rc)
        system.bin_mapper = RectilinearBinMapper([np.arange(len(counts) + 1)])
        system.bin_target_counts = counts
        super().__init__(rc=rc, system=system)
        self.rng = rng
        self.used_initial_states: dict[int, Any] = {}
        self._n_numbered = 0

    def begin(self, bins: np.ndarray) -> list[Segment]:
        """Return walkers made of initial states of equal weight, which are numbered from 0 and lie in these bins."""
        states = [initial_state(number, each) for number, each in enumerate(bins.tolist())]
        self.populate_initial(states, [1 / len(states)] * len(states), self.system)
        return list(self.next_iter_segments)

    def resample(
        self, number: int, weights: np.ndarray, bins: np.ndarray, target: int | None, fresh: Sequence[InitialState]
    ) -> list[Segment]:
        """Return the walkers that follow; those in the target's bin begin anew at the fresh initial states."""
        targets = [] if target is None else [TargetState("target", [target], state_id=0)]
        self.new_iteration(initial_states=fresh, target_states=targets)
        self.assign(
            [
                Segment(n_iter=number, seg_id=walker, weight=weight, pcoord=np.full((2, 1), each, np.float32))
                for walker, (weight, each) in enumerate(zip(weights.tolist(), bins.tolist(), strict=True))
            ]
        )
        self.construct_next()
        return list(self.next_iter_segments)

    def _recycle_walkers(self) -> None:
        # The first step of WESTPA's resampling, when all walkers have just been put into their bins.
        for walkers in self.next_iter_binning:
            ordered = sorted(walkers, key=attrgetter("parent_id"))
            walkers.clear()
            walkers.update(self._numbered(each) for each in ordered)
        super()._recycle_walkers()
        self.used_initial_states = _Kept(self.used_initial_states)

    def _split_walker(self, segment: Segment, m: int, bin: Any) -> list[Segment]:
        return [self._numbered(each) for each in super()._split_walker(segment, m, bin)]

    def _merge_walkers(self, segments: Any, cumul_weight: Any, bin: Any) -> tuple[Segment, Segment]:
        merged, parent = super()._merge_walkers(segments, cumul_weight, bin)
        return self._numbered(merged), parent

    def _numbered(self, segment: Segment) -> Segment:
        """Return the segment, which lies in no set yet, with the next number."""
        segment.__class__ = Numbered
        segment.number = self._n_numbered
        self._n_numbered += 1
        return segment


def initial_state(number: int, bin_of_basis: int) -> InitialState:
    """Return WESTPA's initial state of that number."""
    return InitialState(
        number,
        0,
        iter_created=0,
        istate_type=InitialState.ISTATE_TYPE_BASIS,
        istate_status=InitialState.ISTATE_STATUS_PREPARED,
        pcoord=np.array([bin_of_basis], np.float32),
    )
