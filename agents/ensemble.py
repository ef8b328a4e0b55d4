"""Weighted ensembles: walkers that carry weights and wait for each other where an iteration ends, to be resampled."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agents.attempts import Verdict
from agents.questions import Question
from agents.state import CampaignState, Start
from agents.walkers import Basis, Due, Walkers
from campaign.iterations import Boundary, record
from campaign.method import Method
from campaign.west.record import Binning, Ended
from campaign.wire import decode
from policies.iteration import BasisStates, BrokenEnsemble, Endpoint, InitialState, Iteration, Resampled
from policies.weighted_ensemble import Rule, begin_apart, carry_on
from tasks.coordinate import pack_pcoord, unpack_pcoord
from tasks.errors import BadInput
from tasks.messages import Coordinate, Ref, SegmentResult, SegmentSpec

logger = logging.getLogger(__name__)

# In place of a model version, where coordinates are learned and nothing has been learnt.
_NO_MODEL = -1

# Among the numbers that a seed is made of; not zero, for numpy takes trailing zeros for none.
_OF_ENSEMBLES = 17

# Segments begun for a walker, each with a seed of its own and attempts as any: one that fails twice fails by itself.
SEGMENTS_PER_WALKER = 2


@dataclass(slots=True)
class Member:
    """A walker of an iteration.

    Attributes
    ----------
    tries
        Segments that were begun for it.
    segment_id
        The last of them; None while it waits for one.
    end
        Where that one ended; None until it has.
    frames
        What a learned coordinate is computed from, where the learning site reaches it.
    """

    start: Start
    tries: int = 0
    segment_id: int | None = None
    end: Start | None = None
    frames: Ref | None = None
    pcoord: np.ndarray | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class Replica:
    """An ensemble of its own, beside others.

    Attributes
    ----------
    iteration
        As it began; None until there is a first.
    n_initial
        Initial states made so far.
    is_open
        Whether segments of the iteration may be begun.
    asked
        Model version by which the iteration's coordinates are computed on the learning site; None until they are
        asked for.
    model
        Of that version.
    n_at_end
        Walkers that are at the end of their segments.
    """

    number: int
    rng: np.random.Generator
    iteration: Iteration | None = None
    members: list[Member] = field(default_factory=list)
    n_initial: int = 0
    is_open: bool = False
    asked: int | None = None
    model: Ref | None = None
    n_at_end: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether every walker is at the end of its segment."""
        return bool(self.members) and self.n_at_end == len(self.members)


def generator(seed: int, replica: int) -> np.random.Generator:
    """Return what an ensemble draws from, apart from segments and from other ensembles."""
    return np.random.default_rng([seed, replica, _OF_ENSEMBLES])


class EnsembleWalkers(Walkers):
    """One or several weighted ensembles, whose iterations fill each other's waiting.

    Parameters
    ----------
    ask
        Lets the learning site compute coordinates.

    Attributes
    ----------
    basis_at
        Coordinates of the basis states by model version, as far as they are known, (n_states, n_dimensions) each.
    """

    wait_for_each_other = True

    def __init__(self, state: CampaignState, basis: Basis, method: Method, ask: Callable[[Question], None]) -> None:
        super().__init__(state, basis)
        self.method = method
        self._ask = ask
        self.replicas = [
            Replica(number, generator(state.settings.seed, number)) for number in range(state.settings.replicas)
        ]
        self.basis_at: dict[int, np.ndarray] = {}
        self._basis_asked: set[int] = set()
        self._basis_rows: dict[int, dict[int, np.ndarray]] = {}
        self._ready: deque[tuple[Replica, int]] = deque()
        self._out: dict[int, tuple[Replica, int]] = {}
        self._at_end: dict[int, tuple[Replica, int]] = {}

    @property
    def coordinate(self) -> Coordinate:
        """What workers compute of a segment."""
        return self.method.coordinate

    @property
    def n_idle(self) -> int:
        """How many wait for a segment."""
        return len(self._ready)

    @property
    def n_together(self) -> int:
        """The walkers of all ensembles."""
        return sum(len(replica.members) for replica in self.replicas) or self.state.settings.walkers

    def wants_more(self, n_pending: int) -> bool:
        """Whether an iteration is under way, or another may begin."""
        return any(replica.is_open or not self._at_its_end(replica) for replica in self.replicas)

    def _at_its_end(self, replica: Replica) -> bool:
        """Return whether the limits let no further iteration begin; one that has begun is finished."""
        state, number = self.state, 1 if replica.iteration is None else replica.iteration.number
        most = state.settings.max_iterations
        enough = state.target_segments is not None and state.counts.segments >= state.target_segments
        return enough or state.until is not None or (most is not None and number > most)

    # Segments ---------------------------------------------------------------------------------------------------

    def next(self) -> Due:
        """Return the segment of the walker that waited longest."""
        replica, row = self._ready.popleft()
        member = replica.members[row]
        assert replica.iteration is not None
        # So that weights do not depend on the order in which results come.
        seed = (replica.number, replica.iteration.number, row, member.tries)
        return Due(row, member.start, replica.iteration.number, replica.number, seed)

    def began(self, due: Due, segment_id: int) -> None:
        """Note which segment a walker runs."""
        replica = self.replicas[due.replica]
        member = replica.members[due.walker_id]
        member.tries, member.segment_id = member.tries + 1, segment_id
        self._out[segment_id] = replica, due.walker_id
        self._keep_member(replica, due.walker_id)

    def moved(self, spec: SegmentSpec, result: SegmentResult) -> None:
        """Take a walker to the end of its segment."""
        if (where := self._out.pop(spec.segment_id, None)) is None:
            return
        replica, row = where
        member = replica.members[row]
        member.end = Start(result.end, 0, spec.segment_id, result.n_frames - 1)
        member.seconds = sum(result.seconds.values())
        self._at_end[spec.segment_id] = where
        replica.n_at_end += 1
        self.state.hold(result.end, ("end", spec.segment_id))
        if result.pcoord:
            member.pcoord = unpack_pcoord(result.pcoord, self.coordinate.n_dimensions)
        self._keep_member(replica, row)

    def stuck(self, spec: SegmentSpec, start: Start, verdict: Verdict) -> None:
        """Begin a walker's segment anew with another seed; where that fails as well, the ensemble cannot go on."""
        if (where := self._out.pop(spec.segment_id, None)) is None:
            return
        self._begin_anew(*where)

    def _begin_anew(self, replica: Replica, row: int) -> None:
        member = replica.members[row]
        last, member.segment_id = member.segment_id, None
        self._keep_member(replica, row)
        if member.tries % SEGMENTS_PER_WALKER:
            self._ready.append((replica, row))
            return
        assert replica.iteration is not None
        self.state.fail(
            f"walker {row} of iteration {replica.iteration.number} failed with {SEGMENTS_PER_WALKER} seeds, last as "
            f"segment {last}; weights are as they were: resume tries again, status tells why it failed"
        )

    def rest(self, spec: SegmentSpec) -> None:
        """Nothing: walkers wait for each other."""

    # Iterations -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Resample what has ended, and let what may begin; what is not known for that is asked for."""
        for replica in self.replicas:
            if replica.iteration is None and self._knows_basis(self._version, self._model):
                self._begin(replica)
            while replica.has_ended and self._knows_coordinates(replica) and self.state.failure is None:
                self._end_iteration(replica)
            if replica.iteration is not None and not replica.is_open and not self._at_its_end(replica):
                replica.is_open = True
                self._ready.extend((replica, row) for row in range(len(replica.members)))

    @property
    def _version(self) -> int:
        """Model version of coordinates that are computed now; `_NO_MODEL` where one is needed and there is none."""
        if not self.coordinate.learned:
            return 0
        return _NO_MODEL if self.state.model is None else self.state.model_version

    @property
    def _model(self) -> Ref | None:
        return self.state.model if self.coordinate.learned else None

    def _knows_basis(self, version: int, model: Ref | None) -> bool:
        if version == _NO_MODEL:
            return True
        if version not in self.basis_at and version not in self._basis_asked:
            self._basis_asked.add(version)
            self._ask(Question(version, model, basis=tuple(range(len(self.basis.starts)))))
        return version in self.basis_at

    def _knows_coordinates(self, replica: Replica) -> bool:
        """Return whether all that binning needs is there, by one model version."""
        if replica.asked is None and not self._ask_for(replica):
            return False
        assert replica.asked is not None
        known = replica.asked == _NO_MODEL or all(member.pcoord is not None for member in replica.members)
        return self._knows_basis(replica.asked, replica.model) and known

    def _ask_for(self, replica: Replica) -> bool:
        """Have an iteration embedded by the newest model version; return False where its frames are on their way."""
        version = self._version
        if self.coordinate.learned and version != _NO_MODEL:
            frames = [(member.segment_id, member.frames) for member in replica.members]
            asked_for = [(segment, ref) for segment, ref in frames if segment is not None and ref is not None]
            if len(asked_for) < len(frames):
                return False
            for member in replica.members:
                member.pcoord = None  # of another version, before this process
            self._ask(Question(version, self._model, batches=tuple(asked_for)))
        replica.asked, replica.model = version, self._model
        if replica.model is not None:
            # Another may be trained before the basis states are asked for.
            self.state.hold(replica.model, ("asked", replica.number))
        return True

    def _basis_states(self, version: int) -> BasisStates:
        n_states, n_dimensions = len(self.basis.starts), self.coordinate.n_dimensions
        pcoord = self.basis_at.get(version, np.zeros((n_states, n_dimensions)))
        return BasisStates(self.method.names, self.method.probabilities, pcoord)

    def _begin(self, replica: Replica) -> None:
        basis = self._basis_states(self._version)
        try:
            if self._version == _NO_MODEL:
                first = begin_apart(basis, self.state.settings.walkers, replica.rng)
            else:
                first = self.method.rule(basis.pcoord).begin(basis, replica.rng)
        except BadInput as error:
            self.state.fail(str(error))
            return
        self._adopt(replica, first, ())

    def _end_iteration(self, replica: Replica) -> None:
        """Bin, recycle, split and merge; the ledger has it all in the transaction of this decision."""
        iteration, members, version = replica.iteration, replica.members, replica.asked
        assert iteration is not None
        assert version is not None
        try:
            pcoord, resampled, rule = self._resampled(replica, iteration, self._basis_states(version))
        except (BrokenEnsemble, BadInput) as error:
            self.state.fail(str(error))
            return
        seconds = np.array([member.seconds for member in members])
        ended = Ended(iteration, pcoord, seconds, resampled, Binning(rule.space.mapper, rule.counts))
        segment_ids = tuple(member.segment_id for member in members if member.segment_id is not None)
        boundary = Boundary(replica.number, ended, segment_ids, max(version, 0))
        record(self.state.ledger, boundary)
        self.state.outbox.boundaries.append(boundary)
        self._adopt(replica, resampled.following, members)

    def _adopt(self, replica: Replica, following: Iteration, former: Sequence[Member]) -> None:
        """Let an iteration be the ensemble's; its segments begin once it is open."""
        replica.iteration, replica.asked, replica.is_open, replica.n_at_end = following, None, False, 0
        if replica.model is not None:
            self.state.release([replica.model], ("asked", replica.number))
            replica.model = None
        replica.n_initial += len(following.initial)
        states = {state.number: state.basis for state in following.initial}
        replica.members = []
        for parent in following.parents.tolist():
            end = former[parent].end if parent >= 0 else self.basis.starts[states[-1 - parent]]
            assert end is not None
            replica.members.append(Member(end))
        self._hold_starts(replica)
        self._let_go(replica, former)
        self._keep(replica)

    def _resampled(
        self, replica: Replica, iteration: Iteration, basis: BasisStates
    ) -> tuple[np.ndarray, Resampled, Rule]:
        """Return progress coordinates, what comes of them, and the rule by which it does."""
        if replica.asked == _NO_MODEL:
            return self._carried_on(iteration)
        pcoord = np.stack([member.pcoord for member in replica.members if member.pcoord is not None])
        rule = self.method.rule(pcoord[:, -1])
        return pcoord, rule.resample(iteration, pcoord, basis, replica.rng, replica.n_initial), rule

    def _carried_on(self, iteration: Iteration) -> tuple[np.ndarray, Resampled, Rule]:
        """Go on without a model: nothing can be binned, so nothing is split or merged, which biases nothing."""
        n, n_dimensions = len(iteration.weights), self.coordinate.n_dimensions
        pcoord = np.zeros((n, self.state.dynamics.n_frames + 1, n_dimensions), np.float32)
        endpoints, bins = np.full(n, Endpoint.CONTINUES, np.uint8), np.zeros(n, np.int64)
        rule = self.method.rule(pcoord[:, -1])
        return pcoord, Resampled(carry_on(iteration), endpoints, bins), rule

    # What the learning site computes ----------------------------------------------------------------------------

    def reached(self, segment_id: int, frames: Ref | None) -> None:
        """Note where the learning site reaches a segment's frames; None: they were lost on the way."""
        if self.coordinate.learned and (where := self._at_end.get(segment_id)) is not None:
            self._take_frames(*where, frames)

    def _take_frames(self, replica: Replica, row: int, frames: Ref | None) -> None:
        member = replica.members[row]
        assert member.end is not None
        if frames is None:
            # Nobody can say where it ended: it runs anew.
            self.state.release([member.end.ref], ("end", member.segment_id))
            assert member.segment_id is not None
            del self._at_end[member.segment_id]
            replica.n_at_end -= 1
            member.end = None
            self._begin_anew(replica, row)
        elif member.frames is None:
            member.frames = frames
            self.state.hold(frames, ("pcoord", member.segment_id))
            self._keep_member(replica, row)

    def embedded(self, version: int, pcoord: Mapping[int, np.ndarray], basis: Mapping[int, np.ndarray]) -> None:
        """Take coordinates by a model version: of segments (n_frames + 1, n_dimensions), of basis states rows."""
        for segment_id, rows in pcoord.items():
            replica, row = self._at_end.get(segment_id, (None, 0))
            if replica is not None and replica.asked == version:
                replica.members[row].pcoord = rows
        known = self._basis_rows.setdefault(version, {})
        known.update(basis)
        if len(known) == len(self.basis.starts):
            self.basis_at[version] = np.stack([known[number] for number in range(len(known))]).astype(np.float64)
            self.state.ledger.keep(f"ensemble-basis/{version}", self.basis_at[version].tolist())
            self._forget_basis()

    def _forget_basis(self) -> None:
        """Let go of coordinates by model versions that nobody will ask for any more."""
        oldest = min(self._version, *(self._version if r.asked is None else r.asked for r in self.replicas))
        for version in [version for version in self.basis_at if version < oldest]:
            del self.basis_at[version], self._basis_rows[version]
            self._basis_asked.discard(version)
            self.state.ledger.forget(f"ensemble-basis/{version}")

    # What is kept -----------------------------------------------------------------------------------------------

    def _keep(self, replica: Replica) -> None:
        """Keep an iteration as it begins."""
        iteration = replica.iteration
        assert iteration is not None
        told = {
            "number": iteration.number,
            "weights": iteration.weights.tolist(),
            "parents": iteration.parents.tolist(),
            "lineage": iteration.lineage,
            "initial": [[state.number, state.basis] for state in iteration.initial],
            # Basis states by number: every process ships them anew.
            "starts": [
                member.start if member.start.parent_id is not None else member.start.parent_frame or 0
                for member in replica.members
            ],
            "n_initial": replica.n_initial,
            "rng": replica.rng.bit_generator.state,
        }
        self.state.ledger.keep(f"ensemble/{replica.number}", told)

    def _keep_member(self, replica: Replica, row: int) -> None:
        member = replica.members[row]
        told = {
            "tries": member.tries,
            "segment_id": member.segment_id,
            "end": member.end,
            "seconds": member.seconds,
            "frames": member.frames,
            # Of a learned one another process may know a newer model version.
            "pcoord": None if member.pcoord is None or self.coordinate.learned else pack_pcoord(member.pcoord),
        }
        self.state.ledger.keep(f"member/{replica.number}/{row}", told)

    def _hold_starts(self, replica: Replica) -> None:
        assert replica.iteration is not None
        for row, member in enumerate(replica.members):
            self.state.hold(member.start.ref, ("start", replica.number, replica.iteration.number, row))

    def _let_go(self, replica: Replica, former: Sequence[Member]) -> None:
        """Let go of what the walkers of an iteration that ended held."""
        assert replica.iteration is not None
        for row, member in enumerate(former):
            self.state.release([member.start.ref], ("start", replica.number, replica.iteration.number - 1, row))
            if member.end is not None and member.segment_id is not None:
                self.state.release([member.end.ref], ("end", member.segment_id))
                del self._at_end[member.segment_id]
            if member.frames is not None:
                self.state.release([member.frames], ("pcoord", member.segment_id))
            self.state.ledger.forget(f"member/{replica.number}/{row}")

    def restore(self, open_segments: Mapping[int, SegmentSpec]) -> None:
        """Put each ensemble where the last commit left it."""
        ledger = self.state.ledger
        self.basis_at = {int(version): np.array(told) for version, told in ledger.kept("ensemble-basis/").items()}
        self._basis_rows = {version: dict(enumerate(rows)) for version, rows in self.basis_at.items()}
        for replica in self.replicas:
            if (told := ledger.kept(f"ensemble/{replica.number}").get("")) is None:
                continue
            self._restore_iteration(replica, told)
            for row, kept in ledger.kept(f"member/{replica.number}/").items():
                self._restore_member(replica, int(row), kept, open_segments)
            self._hold_starts(replica)
            replica.is_open = any(member.tries for member in replica.members)
            if replica.is_open:
                waiting = (row for row, member in enumerate(replica.members) if member.segment_id is None)
                self._ready.extend((replica, row) for row in waiting)

    def _restore_iteration(self, replica: Replica, told: dict[str, Any]) -> None:
        replica.iteration = Iteration(
            number=told["number"],
            weights=np.array(told["weights"]),
            parents=np.array(told["parents"], np.int64),
            lineage=tuple(tuple(carried) for carried in told["lineage"]),
            initial=tuple(InitialState(*state) for state in told["initial"]),
        )
        replica.iteration.check()
        replica.n_initial = told["n_initial"]
        replica.rng.bit_generator.state = told["rng"]
        replica.members = [Member(self._found(start)) for start in told["starts"]]

    def _found(self, told: object) -> Start:
        """Return a start of an earlier process with its data where they lie now."""
        if isinstance(told, int):
            return self.basis.starts[told]
        start = decode(Start, told, self.state.stores)
        ref = self.state.find(start.ref, "simulate")
        if ref is None:
            self.state.fail(f"the end of segment {start.parent_id} is lost from its store: its weight has nobody")
            return start
        return replace(start, ref=ref)

    def _restore_member(
        self, replica: Replica, row: int, told: dict[str, Any], open_segments: Mapping[int, SegmentSpec]
    ) -> None:
        member = replica.members[row]
        member.tries, member.seconds = told["tries"], told["seconds"]
        segment_id = told["segment_id"]
        if told["end"] is not None:
            member.segment_id, member.end = segment_id, self._found(told["end"])
            self.state.hold(member.end.ref, ("end", segment_id))
            self._at_end[segment_id] = replica, row
            replica.n_at_end += 1
            self._restore_frames(member, told["frames"])
            if told["pcoord"] is not None:
                packed = decode(bytes, told["pcoord"], self.state.stores)
                member.pcoord = unpack_pcoord(packed, self.coordinate.n_dimensions)
        elif segment_id in open_segments:
            member.segment_id = segment_id
            self._out[segment_id] = replica, row

    def _restore_frames(self, member: Member, told: object) -> None:
        """Find what a coordinate is computed from; frames that are on their way are told of when they have come."""
        if told is not None:
            found = self.state.find(decode(Ref, told, self.state.stores), "infer")
            if found is None:
                self.state.fail(f"the frames of segment {member.segment_id} are lost: its walker cannot be binned")
                return
            member.frames = found
            self.state.hold(found, ("pcoord", member.segment_id))

    def awaits(self, spec: SegmentSpec) -> None:
        """Note that a segment's result waits for its turn."""
        replica, row = self.replicas[spec.replica], spec.walker_id
        replica.members[row].segment_id = spec.segment_id
        self._out[spec.segment_id] = replica, row
        if (replica, row) in self._ready:
            self._ready.remove((replica, row))
