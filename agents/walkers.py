"""Who begins segments: walkers, where each begins its next one, and what they make of a segment that ended."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from agents.attempts import Verdict
from agents.state import CampaignState, CandidateSet, Start, Walker
from campaign.wire import decode
from policies import PolicyFailed
from tasks.messages import Coordinate, Ref, SegmentResult, SegmentSpec

logger = logging.getLogger(__name__)


class Basis:
    """The basis states, where walkers begin.

    Attributes
    ----------
    starts
        One each.
    """

    def __init__(self, state: CampaignState, ref: Ref) -> None:
        self._state = state
        n_starts = state.molecule.n_starts
        # Where there are several, the number of each stands for its frame: the ledger keeps them apart by it.
        self.starts = [Start(ref, row, None, row if n_starts > 1 else None) for row in range(n_starts)]
        for start in self.starts:
            state.hold(start.ref, ("basis", start.row))

    def move(self, number: int, ref: Ref) -> tuple[Start, Start]:
        """Let walkers begin at other data of a basis state, its first row; return it before and after."""
        before = self.starts[number]
        after = self.starts[number] = replace(before, ref=ref, row=0)
        self._state.ledger.keep(f"basis/{number}", ref)
        self._state.hold(after.ref, ("basis", number))
        self._state.release([before.ref], ("basis", number))
        return before, after

    def of(self, spec: SegmentSpec) -> Start:
        """Return the basis state that a segment without a parent begins at."""
        return self.starts[spec.parent_frame or 0]


@dataclass(frozen=True, slots=True)
class Due:
    """A segment to begin.

    Attributes
    ----------
    seed
        What the seed of its dynamics is made of besides the campaign's; None: its id.
    """

    walker_id: int
    start: Start
    iteration: int = 0
    replica: int = 0
    seed: tuple[int, ...] | None = None


class Walkers(ABC):
    """Decides where segments begin. Every method is called with the state's lock held and a transaction open."""

    # Whether no segment begins any more where several failed in the same way.
    blames_starts = False

    # Whether one that takes long keeps others from going on.
    wait_for_each_other = False

    def __init__(self, state: CampaignState, basis: Basis) -> None:
        self.state = state
        self.basis = basis

    @property
    def coordinate(self) -> Coordinate | None:
        """What workers compute of each segment."""
        return None

    @property
    @abstractmethod
    def n_idle(self) -> int:
        """How many wait for a segment."""

    @property
    @abstractmethod
    def n_together(self) -> int:
        """How many segments can be out at once."""

    @abstractmethod
    def wants_more(self, n_pending: int) -> bool:
        """Whether the limits leave room for another segment than those that were begun."""

    def advance(self) -> None:
        """Decide what has become due since the last result."""
        return

    def reached(self, segment_id: int, frames: Ref | None) -> None:
        """Note where the learning site reaches a segment's frames; None: they were lost on the way."""
        return

    @abstractmethod
    def next(self) -> Due | None:
        """Return the next segment to begin; None where there is no start, or the campaign failed in choosing it."""

    @abstractmethod
    def began(self, due: Due, segment_id: int) -> None:
        """Note that it was begun."""

    @abstractmethod
    def moved(self, spec: SegmentSpec, result: SegmentResult) -> None:
        """Take a walker to the end of its segment."""

    @abstractmethod
    def stuck(self, spec: SegmentSpec, start: Start, verdict: Verdict) -> None:
        """Go on without a segment that was given up."""

    @abstractmethod
    def rest(self, spec: SegmentSpec) -> None:
        """Let whoever ran a segment, whatever became of it, wait for the next."""

    @abstractmethod
    def restore(self, open_segments: Mapping[int, SegmentSpec]) -> None:
        """Read back what an earlier process left.

        Parameters
        ----------
        open_segments
            Those that are sent again.
        """

    @abstractmethod
    def awaits(self, spec: SegmentSpec) -> None:
        """Note that a result of an earlier process waits for its turn."""

    def told(self) -> dict[str, Any]:
        """Return what is to be remembered with every decision."""
        return {}

    def move_basis(self, number: int, ref: Ref) -> None:
        """Let walkers begin at other data of a basis state, its first row."""
        self.basis.move(number, ref)

    def quarantine(self, start: Start) -> None:
        """Begin no segment there any more."""
        self.state.counts.quarantined += start.origin not in self.state.quarantine
        self.state.quarantine.add(start.origin)
        logger.warning("no segment starts at segment %s frame %s any more", *start.origin)

    def start_lost(self, spec: SegmentSpec) -> Start | None:
        """Return where a segment begins whose start is lost from its store: every process ships basis states."""
        return self.basis.of(spec) if spec.parent_id is None else None


class FreeWalkers(Walkers):
    """Walkers that know nothing of each other: each begins where the policy says, or carries on.

    Attributes
    ----------
    all
        By ``walker_id``; dealt over the basis states in turn.
    idle
        Those that wait, longest first.
    turn
        Counts how often one began to wait.
    """

    blames_starts = True

    def __init__(self, state: CampaignState, basis: Basis) -> None:
        super().__init__(state, basis)
        n_starts = len(basis.starts)
        self.all = [Walker(i, basis.starts[i % n_starts]) for i in range(state.settings.walkers)]
        self.idle = deque(self.all)
        self.turn = 0

    @property
    def n_idle(self) -> int:
        """How many wait for a segment."""
        return len(self.idle)

    @property
    def n_together(self) -> int:
        """One each."""
        return len(self.all)

    def wants_more(self, n_pending: int) -> bool:
        """Whether the target is not reached yet by what was begun, or models are missing."""
        if self.state.until is not None:
            return False
        target = self.state.target_segments
        short_of_models = self.state.model_version < self.state.settings.min_model_versions
        return target is None or self.state.counts.segments + n_pending < target or short_of_models

    def next(self) -> Due | None:
        """Let the one begin that waited longest, at a candidate, or where it is, or at any usable start."""
        walker = self.idle[0]
        start = self._choose_start(walker)
        if start is None:
            return None
        self.idle.popleft()
        return Due(walker.walker_id, start)

    def _choose_start(self, walker: Walker) -> Start | None:
        """Return a candidate, or the walker's own end, or else any start that is not quarantined."""
        steered = self._choose_candidate(self.state.candidates)
        if self.state.failure is not None:
            return None
        others = (self.all[walker.walker_id - i].own for i in range(1, len(self.all)))
        for start in chain((steered, walker.own), self.basis.starts, others):
            if start is not None and start.origin not in self.state.quarantine:
                return start
        return None

    def _choose_candidate(self, candidates: CandidateSet | None) -> Start | None:
        if candidates is None:
            return None
        usable = [row for row, origin in enumerate(candidates.ids) if origin not in self.state.quarantine]
        try:
            place = self.state.policy.choose(candidates.scores[usable], candidates.used[usable], self.state.rng)
        except PolicyFailed as error:
            logger.exception("the policy failed")
            self.state.fail(str(error))
            return None
        if place is None:
            return None
        row = usable[place]
        candidates.used[row] += 1
        return Start(candidates.ref, row, *candidates.ids[row], steered=True, novelty=float(candidates.scores[row]))

    def began(self, due: Due, segment_id: int) -> None:
        """Note which segment a walker runs."""
        self.all[due.walker_id].segment_id = segment_id

    def moved(self, spec: SegmentSpec, result: SegmentResult) -> None:
        """Take a walker to the end of its segment, unless it went on without it."""
        walker = self.all[spec.walker_id]
        if walker.segment_id != spec.segment_id:
            return
        end = Start(result.end, 0, spec.segment_id, result.n_frames - 1)
        self.state.hold(end.ref, ("walker", walker.walker_id))
        if walker.own.parent_id is not None:
            self.state.release([walker.own.ref], ("walker", walker.walker_id))
        walker.own = end

    def stuck(self, spec: SegmentSpec, start: Start, verdict: Verdict) -> None:
        """Leave a start alone from which no segment ends well."""
        if verdict == "systematic":
            self.quarantine(start)

    def rest(self, spec: SegmentSpec) -> None:
        """Let a walker wait for its next segment."""
        walker = self.all[spec.walker_id]
        if walker.segment_id != spec.segment_id:
            return
        walker.segment_id = None
        self.turn += 1
        self.idle.append(walker)
        at_basis = self.basis.starts.index(walker.own) if walker.own.parent_id is None else None
        own = walker.own if at_basis is None else None
        self.state.ledger.keep(f"walker/{walker.walker_id}", {"turn": self.turn, "basis": at_basis, "own": own})

    def move_basis(self, number: int, ref: Ref) -> None:
        """Let walkers that wait at a basis state begin at other data of it."""
        before, after = self.basis.move(number, ref)
        for walker in self.all:
            if walker.own == before:
                walker.own = after

    def told(self) -> dict[str, Any]:
        """Return the turn."""
        return {"turn": self.turn}

    def restore(self, open_segments: Mapping[int, SegmentSpec]) -> None:
        """Put each where it was; those with a segment that is sent again have one."""
        self.turn = self.state.ledger.kept("state")[""]["turn"]
        turns = dict.fromkeys(range(len(self.all)), 0)
        for walker in self.all:
            # Equilibrated since they were made.
            walker.own = self.basis.starts[walker.walker_id % len(self.basis.starts)]
        for number, told in self.state.ledger.kept("walker/").items():
            turns[int(number)] = told["turn"]
            self._put_back(self.all[int(number)], told)
        for segment_id, spec in open_segments.items():
            self.all[spec.walker_id].segment_id = segment_id
        waiting = sorted(self.all, key=lambda walker: turns[walker.walker_id])
        self.idle = deque(walker for walker in waiting if walker.segment_id is None)

    def _put_back(self, walker: Walker, told: dict[str, Any]) -> None:
        if told["own"] is None:
            walker.own = self.basis.starts[told["basis"]]
            return
        own = decode(Start, told["own"], self.state.stores)
        ref = self.state.find(own.ref, "simulate")
        if ref is None:
            self.state.warn(
                f"walker {walker.walker_id} goes back to a basis state: the end of segment {own.parent_id} is lost"
            )
            return
        walker.own = replace(own, ref=ref)
        self.state.hold(ref, ("walker", walker.walker_id))

    def awaits(self, spec: SegmentSpec) -> None:
        """Let its walker wait with it."""
        walker = self.all[spec.walker_id]
        walker.segment_id = spec.segment_id
        if walker in self.idle:
            self.idle.remove(walker)
