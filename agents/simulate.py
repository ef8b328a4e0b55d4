"""The simulate topic: keeps every slot busy, and chooses where each walker's next segment starts."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agents.attempts import Failure, Verdict
from agents.hook import HookAgent
from agents.pool import Load
from agents.state import CampaignState, Destination, Start
from agents.topic import InFlight, Outcome, TopicAgent, task_seed, without_system
from agents.walkers import Due, Walkers
from campaign.ledger import OpenTask, State
from tasks.messages import Archive, FileRecord, Ref, SegmentResult, SegmentSpec, Watch, Watched

# Bundles sent per worker: one runs, one waits behind it.
QUEUED_PER_WORKER = 2

# After so many segments that were given up, and none that ended well between them, nothing will get better.
GIVEN_UP_IN_A_ROW = 10

# Wall time that a campaign takes to end in order.
LEAVING_S = 15.0

# Short segments are bundled until they keep a worker busy for so long: a task costs some 6 ms of CPU whatever it
# does, 2 % of this.
WORTH_A_TASK_S = 0.3

# Of the median time that segments are out; what takes longer, and is waited for, is tried elsewhere as well.
STRAGGLES_AFTER = 3.0
_ENOUGH_TURNAROUNDS = 8
# What takes less is not worth a second attempt.
_NO_STRAGGLER_S = 1.0

# Why a segment runs again of which everything but its trajectory is there; kept as ``rerun/ID``.
ITS_FILE = "file"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What became of a segment, until it is applied.

    Attributes
    ----------
    result
        None where it was given up.
    verdict
        Why it was given up.
    """

    spec: SegmentSpec
    start: Start
    bundle: int
    result: SegmentResult | None
    verdict: Verdict | None = None


class SimulateAgent(TopicAgent[SegmentSpec, SegmentResult]):
    """The segments in flight, which walkers begin where they decide.

    Parameters
    ----------
    hooks
        Who runs what the user wants run before segments, and after.

    Attributes
    ----------
    computed
        Segments that were done on a node's scratch, and not gathered.
    newly_computed
        Whether there are more of them since somebody asked for all.
    reported
        Archives that came with results.
    again
        Segments that were applied before their trajectories were lost: they run for these alone.
    """

    topic = "simulate"
    kind = "simulate"
    spec_type = SegmentSpec
    reruns = True

    def __init__(self, state: CampaignState, walkers: Walkers, hooks: HookAgent) -> None:
        super().__init__(state)
        self._hooks = hooks
        self.walkers = walkers
        self._origins: dict[int, Start] = {}
        self._held_back: dict[int, SegmentSpec] = {}
        self._arrived: dict[int, Arrived] = {}
        self.next_to_apply = 0
        self._n_pending = 0
        self._bundle_of: dict[int, int] = {}
        self._left_in: Counter[int] = Counter()
        self.computed: set[int] = set()
        self.newly_computed = False
        self.reported: deque[Archive] = deque()
        self.again: set[int] = set()
        self._starts_kept: dict[int, Ref] = {}
        self._n_given_up = 0
        self.running_again: set[int] = set()
        self._durations: deque[float] = deque(maxlen=64)
        self._turnarounds: deque[float] = deque(maxlen=64)
        self._load = Load()
        self._recalled_to: dict[int, Destination] = {}
        self._watch = _watch(state)
        self._warned_of: set[str] = set()

    # What is sent -----------------------------------------------------------------------------------------------

    @property
    def n_pending(self) -> int:
        """Segments that were begun and are not applied yet."""
        return self._n_pending

    @property
    def n_bundles(self) -> int:
        """Bundles of which a segment is not applied yet."""
        return len(self._left_in)

    @property
    def out(self) -> Mapping[str, int]:
        """Bundles at each executor of which a segment is not applied yet."""
        return self._load.out

    def fill(self) -> None:
        """Send segments for idle walkers until every worker has a bundle running and one waiting."""
        if self.state.paused is not None or not self._in_time():
            return
        while self.walkers.n_idle and self.wants_more() and (place := self._place_with_room()) is not None:
            size = self.bundle_size()
            # What is out will come back and fill the bundle; a worker that has nothing to do waits for none.
            if self.walkers.n_idle < size and not self._waits_for_work(place):
                return
            if not self._begin_bundle(size, place):
                return

    def _in_time(self) -> bool:
        """Return whether a segment sent now would be back before time is over; if not, none is sent any more."""
        end = self.state.end_of_time
        if end is None or self.state.ending is not None:
            return True
        # It waits behind one, of each campaign that shares the workers, and the campaign needs a moment to end.
        longest = max(self._durations, default=0.0) * self.bundle_size() * self.state.pool.shared_by()
        left = end - time.monotonic() - LEAVING_S
        if left > QUEUED_PER_WORKER * longest:
            return True
        self.state.out_of_time = True
        self.state.end(f"the time is over: {max(0.0, left):.0f} s are left, and segments take {longest:.1f} s")
        return False

    def _place_with_room(self) -> Destination | None:
        pool = self.state.pool
        if not self.state.settings.lockstep:
            return pool.with_room(self.out, QUEUED_PER_WORKER)
        # How many are out decides what the next one knows, and must not hang on which site comes or goes.
        return pool.lightest(self.out) if self.n_bundles < QUEUED_PER_WORKER * pool.all_slots else None

    def _waits_for_work(self, place: Destination) -> bool:
        """Whether a worker has nothing to do; if none has at this site, none has at any."""
        if self.state.settings.lockstep:
            return self.n_bundles < self.state.pool.all_slots
        return self.out[place.executor] < self.state.pool.share(place)

    def _begin_bundle(self, size: int, place: Destination) -> bool:
        """Begin up to so many segments; return False where none could be begun."""
        bundle = self.state.next_segment_id
        for n_begun in range(size):
            if not (self.walkers.n_idle and self.wants_more()):
                return True
            due = self.walkers.next()
            if due is None:
                # A segment that is still out may end well, and give a start.
                if self._n_pending == 0 and self.state.failure is None:
                    self.state.fail("every start is quarantined: no segment from any of them ended well")
                return n_begun > 0
            self._begin(due, bundle, place)
        return True

    def bundle_size(self) -> int:
        """Return how many segments a task takes: several only where there are walkers enough for all workers."""
        settings, counts = self.state.settings, self.state.counts
        if settings.bundle is not None:
            return settings.bundle
        # Messages that hold coordinates are large already; and decisions in lockstep must not hang on the clock.
        if settings.lockstep or self.destination.store.kind == "inline" or not counts.segments:
            return 1
        computed_s = sum(seconds for (_, topic), seconds in counts.compute_s.items() if topic == self.topic)
        seconds = computed_s / counts.segments
        worthwhile = math.ceil(WORTH_A_TASK_S / max(seconds, 1e-3))
        return max(1, min(worthwhile, self.walkers.n_together // (QUEUED_PER_WORKER * self.state.pool.slots)))

    def wants_more(self) -> bool:
        """Whether the limits leave room for another segment."""
        return self.state.ending is None and self.walkers.wants_more(self._n_pending)

    def _begin(self, due: Due, bundle: int, place: Destination) -> None:
        segment_id, start = self.state.new_segment_id(), due.start
        seed = (segment_id,) if due.seed is None else due.seed
        spec = SegmentSpec(
            segment_id=segment_id,
            attempt=1,
            walker_id=due.walker_id,
            iteration=due.iteration,
            parent_id=start.parent_id,
            parent_frame=start.parent_frame,
            system=self.state.molecule.refs["simulate"],
            system_id=self.state.molecule.digest,
            start=start.ref,
            start_row=start.row,
            seed=task_seed(self.state.settings.seed, *seed),
            dynamics=self.state.dynamics,
            store=place.store,
            run_dir=place.run_dir,
            trajectory_format=self.state.settings.trajectory_format,
            scratch=place.scratch,
            coordinate=self.walkers.coordinate,
            replica=due.replica,
            watch=self._watch,
        )
        self.walkers.began(due, segment_id)
        self._expect(segment_id, start, bundle)
        waits = bool(self.state.settings.before_segment)
        self.record(
            spec,
            bundle,
            place,
            state="waiting" if waits else "running",
            parent_id=start.parent_id,
            parent_frame=start.parent_frame,
            walker_id=due.walker_id,
            iteration=due.iteration,
            steered=start.steered,
            novelty=start.novelty,
        )
        if waits:
            self._hold_back(spec, place)
            self._hooks.before_segment(spec, start)
        else:
            self.send(spec, place, bundle)

    def _hold_back(self, spec: SegmentSpec, place: Destination) -> None:
        """Keep a segment until its hooks are done; until then it takes room at that place, and may go elsewhere."""
        self._held_back[spec.segment_id] = spec
        self._load.put(spec.segment_id, self._bundle_of[spec.segment_id], place.executor)
        for ref in self.inputs(spec):
            self.state.hold(ref, ("task", spec.segment_id))

    def release(self, segment_id: int) -> None:
        """Send a segment whose hooks are done or given up; what cannot be sent any more, a later process sends."""
        spec = self._held_back.pop(segment_id, None)
        if spec is not None:
            self.state.ledger.set_state(segment_id, "running")
            self.send(spec, self._place_now(segment_id), self._bundle_of[segment_id])
        elif self.state.ledger.state_of(segment_id) == "waiting":
            self.state.ledger.set_state(segment_id, "ready")

    def _place_now(self, segment_id: int) -> Destination:
        """Return where a segment goes that was held back: with the others of its bundle, or where there is room."""
        self._load.take(segment_id)
        others = self._load.places_of(self._bundle_of[segment_id])
        here = (place for place in self.state.pool.here if place.executor in others)
        return next(here, None) or self.new_place()

    def let_go(self) -> None:
        """Wait no more for segments that were not sent: a later process takes them up."""
        while self._held_back:
            segment_id, _ = self._held_back.popitem()
            self._origins.pop(segment_id)
            self._expect_no_more(segment_id)

    def send_again(self, task: OpenTask, spec: SegmentSpec, failures: tuple[tuple[str, str], ...]) -> None:
        """Send a segment of an earlier process; one that waited for its hooks waits on."""
        if task.state == "waiting":
            self._hold_back(spec, self.recalled_to(task))
        else:
            super().send_again(task, spec, failures)

    def _expect(self, segment_id: int, start: Start, bundle: int) -> None:
        self._origins[segment_id] = start
        self._n_pending += 1
        self._bundle_of[segment_id] = bundle
        self._left_in[bundle] += 1

    def found(self, spec: SegmentSpec) -> SegmentSpec | None:
        """Return an earlier process' spec; a basis state that is lost from its store is shipped with each process."""
        found = super().found(spec)
        if found is None and (start := self.walkers.start_lost(spec)) is not None:
            found = replace(spec, start=start.ref, start_row=start.row)
        return None if found is None else self._watched(found)

    def _watched(self, spec: SegmentSpec) -> SegmentSpec:
        """Return a spec of an earlier process with those who look at segments now.

        A segment that runs for its trajectory alone is as long as it was, whoever ended it.
        """
        if spec.segment_id not in self.again:
            return replace(spec, watch=self._watch)
        n_steps = self._as_counted(spec)["n_frames"] * spec.dynamics.frame_steps
        watch = None if self._watch is None else replace(self._watch, feed=None)
        return replace(spec, watch=watch, dynamics=replace(spec.dynamics, n_steps=n_steps))

    def send(
        self,
        spec: SegmentSpec,
        place: Destination,
        bundle: int | None = None,
        failures: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Record an attempt and put it in the outbox; it counts for its bundle where it is."""
        super().send(spec, place, bundle, failures)
        if spec.segment_id not in self.again:
            self._load.put(spec.segment_id, self._bundle_of[spec.segment_id], place.executor)

    def recalled(self, task: OpenTask, spec: SegmentSpec) -> None:
        """Expect a segment of an earlier process, in the bundle that it was in."""
        assert task.bundle is not None  # as `_begin` wrote it
        start = Start(spec.start, spec.start_row, spec.parent_id, spec.parent_frame, task.steered, task.novelty)
        if task.id in self.again:
            self._origins[task.id] = start
        else:
            self._expect(task.id, start, task.bundle)

    def recalled_to(self, task: OpenTask) -> Destination:
        """Return one place for all segments of a bundle, which travel together again."""
        assert task.bundle is not None  # as `_begin` wrote it
        if task.bundle not in self._recalled_to:
            self._recalled_to[task.bundle] = self.new_place()
        return self._recalled_to[task.bundle]

    def not_recalled(self, spec: SegmentSpec) -> None:
        """Give up a segment that cannot be sent again, in its turn."""
        if spec.segment_id in self.again:
            self._count_no_more(spec)
            return
        start = Start(spec.start, spec.start_row, spec.parent_id, spec.parent_frame)
        bundle = self.state.counts.n_sent["simulate"]
        self._expect(spec.segment_id, start, bundle)
        self._wait(Arrived(spec, self._origins.pop(spec.segment_id), bundle, None, "random"))

    def await_turn(self, arrived: Arrived) -> None:
        """Take back a result of an earlier process that waits for those before it."""
        segment_id = arrived.spec.segment_id
        self._expect(segment_id, arrived.start, arrived.bundle)
        self._origins.pop(segment_id)
        self._arrived[segment_id] = arrived
        for ref in () if arrived.result is None else self.outputs(arrived.result):
            self.state.hold(ref, ("task", segment_id))
        for ref in self.inputs(arrived.spec):
            self.state.hold(ref, ("task", segment_id))

    # Stragglers -------------------------------------------------------------------------------------------------

    def stragglers(self, now: float) -> list[InFlight[SegmentSpec]]:
        """Return what everybody waits for that takes far longer than others do, while workers have nothing to do."""
        waits = (
            self.walkers.wait_for_each_other and not self.walkers.n_idle and self.n_bundles < self.state.pool.slots
        )
        if not waits or len(self._turnarounds) < _ENOUGH_TURNAROUNDS or self.state.ending is not None:
            return []
        limit = max(STRAGGLES_AFTER * statistics.median(self._turnarounds), _NO_STRAGGLER_S)
        return [f for f in self.in_flight.values() if not f.rivals and now - f.sent > limit]

    def overtake(self, now: float) -> None:
        """Send stragglers once more; whichever attempt comes first is applied."""
        for flight in self.stragglers(now):
            logger.warning(
                "segment %d is out for %.1f s, %g times the median of others: it is tried elsewhere as well",
                flight.spec.segment_id, now - flight.sent, STRAGGLES_AFTER,
            )  # fmt: skip
            self.send_rival(flight)

    # What waits on the nodes ------------------------------------------------------------------------------------

    def done(self, spec: SegmentSpec, result: SegmentResult) -> None:
        """Record that a segment is complete, or computed as long as its trajectory is on a node's scratch."""
        segment_id, file = spec.segment_id, result.trajectory
        if file is None or file.node is None:
            super().done(spec, result)
        else:
            self.state.ledger.computed(segment_id, file)
            self.keep_start(spec)
            self.newly_computed = True
            # Another worker of its node may have gathered it before this result came.
            if self.state.ledger.claim(segment_id):
                self.completed(segment_id)
        if result.archive is not None:
            self.reported.append(result.archive)

    def keep_start(self, spec: SegmentSpec) -> None:
        """Keep where a computed segment began, to run it again should its trajectory be lost."""
        self._let_start_go(spec.segment_id)
        self.computed.add(spec.segment_id)
        self._starts_kept[spec.segment_id] = spec.start
        self.state.hold(spec.start, ("computed", spec.segment_id))

    def completed(self, segment_id: int) -> None:
        """Note that a segment's trajectory is in the run directory."""
        self.computed.discard(segment_id)
        self._let_start_go(segment_id)

    def run_again(self, segments: Iterable[int], reason: str) -> None:
        """Run computed segments once more, for their lost trajectories; whatever followed from them stands."""
        tasks = {task.id: task for task in self.state.ledger.open_tasks("computed")}
        for segment_id in segments:
            self.state.ledger.lose(segment_id, reason)
            self.state.ledger.keep(f"rerun/{segment_id}", ITS_FILE)
            self.state.counts.failures["lost"] += 1
            self.computed.discard(segment_id)
            self.again.add(segment_id)
            self.take_up(tasks[segment_id])

    def _let_start_go(self, segment_id: int) -> None:
        start = self._starts_kept.pop(segment_id, None)
        if start is not None:
            self.state.release([start], ("computed", segment_id))

    def _regained(self, spec: SegmentSpec, result: SegmentResult) -> None:
        self._origins.pop(spec.segment_id)
        self.again.discard(spec.segment_id)
        self.state.ledger.forget(f"rerun/{spec.segment_id}")
        self.state.release([*self.inputs(spec), *self.outputs(result)], ("task", spec.segment_id))

    def _not_regained(self, spec: SegmentSpec, start: Start, verdict: Verdict) -> None:
        """Count a segment no more that cannot be had again; a later process may still try."""
        if verdict == "again":
            return
        self.walkers.stuck(spec, start, verdict)
        self.state.counts.steered -= start.steered
        self._count_no_more(spec)

    def _count_no_more(self, spec: SegmentSpec) -> None:
        counts, ran = self.state.counts, self._as_counted(spec)
        counts.segments -= 1
        counts.frames -= ran["n_frames"]
        counts.simulated_ps -= ran["simulated_ps"]
        self.again.discard(spec.segment_id)
        self.state.ledger.forget(f"rerun/{spec.segment_id}")
        self._let_start_go(spec.segment_id)

    def _as_counted(self, spec: SegmentSpec) -> dict[str, Any]:
        """Return what a segment was counted with, which may have ended early."""
        line = self.state.ledger.last_record(self.topic, spec.segment_id, "n_frames")
        assert line is not None  # it was applied
        told: dict[str, Any] = json.loads(line)["task_info"]
        return told

    # What comes back --------------------------------------------------------------------------------------------

    def attempt_of(self, segment_id: int) -> int | None:
        """Return the number of the attempt at a segment that is out; None where none is."""
        flight = self.in_flight.get(segment_id)
        return None if flight is None else flight.spec.attempt

    def handle(self, outcome: Outcome) -> None:
        """Note how long an attempt was out, and commit what became of it."""
        flight = self.in_flight.get(outcome.task_id)
        if flight is not None and flight.spec.attempt == outcome.attempt and outcome.failure is None:
            self._turnarounds.append(time.monotonic() - flight.sent)
        super().handle(outcome)

    def arrived(self, spec: SegmentSpec, result: SegmentResult) -> None:
        """Keep a result until `apply_next` takes it, in order of arrival or, in lockstep, of ids."""
        if spec.segment_id in self.again:
            self._regained(spec, result)
            return
        bundle = self._bundle_of[spec.segment_id]
        self._wait(Arrived(spec, self._origins.pop(spec.segment_id), bundle, result))

    def given_up_state(self, verdict: Verdict) -> State:
        """Return whether its start is to blame, as walkers see it."""
        return "quarantined" if verdict == "systematic" and self.walkers.blames_starts else "fizzled"

    def given_up(self, spec: SegmentSpec, failure: Failure, verdict: Verdict) -> None:
        """Keep the loss until `apply_next` takes it; what a later process tries again is not lost."""
        start = self._origins.pop(spec.segment_id)
        if spec.segment_id in self.again:
            self._not_regained(spec, start, verdict)
            return
        if verdict == "again":
            self._expect_no_more(spec.segment_id)
            return
        self._wait(Arrived(spec, start, self._bundle_of[spec.segment_id], None, verdict))
        self._n_given_up += 1
        if self._n_given_up >= max(self.walkers.n_together, GIVEN_UP_IN_A_ROW):
            self.state.fail(f"{self._n_given_up} segments in a row were given up: {failure.message}")

    def _wait(self, arrived: Arrived) -> None:
        self._arrived[arrived.spec.segment_id] = arrived
        told = replace(arrived, spec=without_system(arrived.spec))
        self.state.ledger.keep(f"arrived/{arrived.spec.segment_id}", told)

    def apply_next(self) -> bool:
        """Apply the next result; return False where there is none to apply yet."""
        segment_id = (
            min(self._arrived, default=None) if self.state.settings.lockstep else next(iter(self._arrived), None)
        )
        # In lockstep each waits for those before it; one that was run again later has none before it.
        if segment_id is None or (self.state.settings.lockstep and segment_id > self.next_to_apply):
            return False
        arrived = self._arrived.pop(segment_id)
        self.state.ledger.forget(f"arrived/{segment_id}")
        self.next_to_apply += segment_id == self.next_to_apply or not self.state.settings.lockstep
        self._expect_no_more(segment_id)
        if arrived.result is not None:
            self._n_given_up = 0
            self.apply(arrived.spec, arrived.result)
            self.state.counts.steered += arrived.start.steered
            if self._hooks.after_segment(arrived.spec, arrived.start, arrived.result):
                self._publish(arrived.result)
        elif arrived.verdict is not None:
            self.walkers.stuck(arrived.spec, arrived.start, arrived.verdict)
        if segment_id in self.running_again and segment_id not in self.again:
            self.running_again.remove(segment_id)
            self.state.ledger.forget(f"rerun/{segment_id}")
        self.walkers.rest(arrived.spec)
        return True

    def _publish(self, result: SegmentResult) -> None:
        """See to it that files are in place before hooks of this decision are sent.

        In lockstep the decision that took the result in may be another thread's, and not carried out yet.
        """
        self.state.outbox.published += [f for f in self.files(result) if f not in self.state.outbox.published]

    def _expect_no_more(self, segment_id: int) -> None:
        self._n_pending -= 1
        bundle = self._bundle_of.pop(segment_id)
        self._load.take(segment_id)
        self._left_in[bundle] -= 1
        if not self._left_in[bundle]:
            del self._left_in[bundle]

    def succeeded(self, spec: SegmentSpec, result: SegmentResult) -> None:
        """Move the walker on, and hand the frames to inference."""
        counts = self.state.counts
        counts.segments += 1
        counts.frames += result.n_frames
        counts.simulated_ps += result.simulated_ps
        if result.watched is not None:
            self._count_watched(result.watched)
        if result.trajectory is not None and result.trajectory.node is None:
            self.state.ledger.add_artifact(spec.segment_id, "trajectory", result.trajectory)
        self.walkers.moved(spec, result)
        if self.state.settings.infer_every:
            self.state.hold(result.frames, ("unobserved", spec.segment_id))
            self.state.frames_to_look_at.append((spec.segment_id, result.frames))
            self.state.ledger.keep(f"frames/{spec.segment_id}", result.frames)

    def _count_watched(self, watched: Watched) -> None:
        told = self.state.counts.watched
        told.update(batches=watched.n_batches, failed=watched.n_failed, stopped=int(watched.stopped))
        if watched.fed is not None:
            fed = watched.fed
            self.state.counts.fed.update(batches=fed.sent, dropped=fed.dropped, stopped=int(fed.stopped))
            if fed.error is not None:
                self._warn_once("stream", f"batches of a segment came here no more ({fed.error}); it went on without")
        if watched.error is not None:
            self._warn_once("on_frames", f"{watched.error}; its segment goes on, and the summary counts such calls")

    def _warn_once(self, about: str, sentence: str) -> None:
        if about not in self._warned_of:
            self._warned_of.add(about)
            self.state.warn(sentence)

    def inputs(self, spec: SegmentSpec) -> Iterable[Ref]:
        """Return the start; the system is held as long as the campaign."""
        return (spec.start,)

    def outputs(self, result: SegmentResult) -> Iterable[Ref]:
        """Return frames and end state."""
        return (result.frames, result.end)

    def files(self, result: SegmentResult) -> Iterable[FileRecord]:
        """Return the trajectory; none where it waits on a node."""
        file = result.trajectory
        return () if file is None or file.node is not None else (file,)

    def info(self, spec: SegmentSpec) -> dict[str, Any]:
        """Return ids, and what chose the start."""
        start = self._origins[spec.segment_id]
        return {
            "segment_id": spec.segment_id,
            "parent_id": spec.parent_id,
            "parent_frame": spec.parent_frame,
            "walker_id": spec.walker_id,
            "iteration": spec.iteration,
            "replica": spec.replica,
            "steered": start.steered,
            "model_version": self.state.model_version,
            "novelty": start.novelty,
        }

    def findings(self, result: SegmentResult) -> dict[str, Any]:
        """Return sizes, energies and timings."""
        return {
            "n_frames": result.n_frames,
            "n_atoms": result.n_atoms,
            "simulated_ps": result.simulated_ps,
            "payload_bytes": result.frames.n_bytes + result.end.n_bytes,
            "proxied": result.frames.data is None,
            "store": result.frames.place,
            "mean_temperature_K": result.mean_temperature_K,
            "potential_energy_kj_mol": result.potential_energy_kj_mol,
            "seconds": result.seconds,
            **({} if result.watched is None else {"watched": asdict(result.watched)}),
        }

    def _count_compute(self, outcome: Outcome, place: Destination) -> None:
        super()._count_compute(outcome, place)
        counts = self.state.counts
        # Results do not come back in the order in which they ran.
        if outcome.started is not None and outcome.ended is not None:
            self._durations.append(outcome.ended - outcome.started)
            counts.first_started = min(outcome.started, counts.first_started or outcome.started)
            counts.last_ended = max(outcome.ended, counts.last_ended or outcome.ended)


def _watch(state: CampaignState) -> Watch | None:
    """Return who looks at segments while they run."""
    settings = state.settings
    if settings.on_frames is None and not settings.serves and state.feed is None:
        return None
    return Watch(
        every=settings.batch_frames,
        # A walker whose segment ends early would carry its weight to another time than the others.
        may_stop=not settings.is_ensemble,
        on_frames=settings.on_frames,
        here=str(Path.cwd()),
        timeout_s=settings.hook_timeout,
        imd_host=(settings.imd_host or "127.0.0.1") if settings.serves else None,
        when_slow=settings.stream_when_slow,
        command=settings.stream_command,
        feed=state.feed,
    )
