"""What all topics share: sending, attempts, deadlines, and results that come too late."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np

from agents.attempts import Failure, Verdict, signature, verdict
from agents.state import POOLED, CampaignState, Destination, Send, TaskSpec
from campaign.ledger import Kind, OpenTask, State
from campaign.wire import decode, encode
from tasks.messages import (
    CoordinateResult,
    CoordinateSpec,
    EmbedResult,
    EmbedSpec,
    EquilibrateResult,
    EquilibrateSpec,
    FileRecord,
    GatherResult,
    GatherSpec,
    GlanceResult,
    GlanceSpec,
    HookResult,
    HookSpec,
    MoveResult,
    MoveSpec,
    Ref,
    SegmentResult,
    SegmentSpec,
    Topic,
    TrainResult,
)

SpecT = TypeVar("SpecT", bound=TaskSpec)
ResultT = TypeVar(
    "ResultT",
    EquilibrateResult,
    SegmentResult,
    EmbedResult,
    GlanceResult,
    CoordinateResult,
    TrainResult,
    MoveResult,
    GatherResult,
    HookResult,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt, without Colmena.

    Attributes
    ----------
    value
        The task's result; None where it failed.
    line
        Gives the trace line, with further ``task_info``.
    started, ended
        Of the computation, UNIX seconds; None where it never ran to its end.
    """

    task_id: int
    attempt: int
    value: Any
    failure: Failure | None
    line: Callable[[dict[str, Any]], str]
    started: float | None = None
    ended: float | None = None
    host: str | None = None
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class InFlight(Generic[SpecT]):
    """A task that was sent and has not come back.

    Attributes
    ----------
    place
        Where it is.
    failures
        Signatures of the attempts before that failed.
    sent
        When it was (monotonic).
    rivals
        Attempts at the same task that were sent because this one takes long: the first result of any wins.
    newest
        Number of the last attempt that was sent, which may have come back.
    """

    spec: SpecT
    deadline: float
    place: Destination
    failures: tuple[tuple[str, str], ...] = ()
    sent: float = 0.0
    rivals: tuple[SpecT, ...] = ()
    newest: int = 1

    @property
    def attempts(self) -> tuple[SpecT, ...]:
        """All that are out."""
        return self.spec, *self.rivals


class TopicAgent(ABC, Generic[SpecT, ResultT]):
    """Sends the tasks of one topic and decides what their outcomes mean.

    Every method is called with the state's lock held and a ledger transaction open.
    """

    topic: Topic
    kind: Kind
    spec_type: type[SpecT]
    reruns = False

    def __init__(self, state: CampaignState) -> None:
        self.state = state
        self.in_flight: dict[int, InFlight[SpecT]] = {}

    @property
    def busy(self) -> bool:
        """Whether something was sent and has not come back."""
        return bool(self.in_flight)

    @property
    def destination(self) -> Destination:
        """Where this topic's tasks go; of a pool the first site."""
        return self.state.destinations[self.topic]

    @property
    def out(self) -> Mapping[str, int]:
        """What is out at each executor."""
        return Counter(flight.place.executor for flight in self.in_flight.values())

    def new_place(self) -> Destination:
        """Return where a task goes that was nowhere yet."""
        return self.state.pool.lightest(self.out).of(self.topic) if self.topic in POOLED else self.destination

    def _other_place(self, place: Destination) -> Destination:
        """Return where a task goes that failed: what is wrong with a site is elsewhere all right."""
        return self.state.pool.elsewhere(place, self.out).of(self.topic) if self.topic in POOLED else place

    # What a topic defines ---------------------------------------------------------------------------------------

    @abstractmethod
    def inputs(self, spec: SpecT) -> Iterable[Ref]:
        """Return the data a task reads, held until it is done."""

    @abstractmethod
    def outputs(self, result: ResultT) -> Iterable[Ref]:
        """Return the data a task made."""

    def files(self, result: ResultT) -> Iterable[FileRecord]:
        """Return the files a task left in the run directory."""
        return ()

    @abstractmethod
    def info(self, spec: SpecT) -> dict[str, Any]:
        """Return what the trace tells of a task when it is sent."""

    @abstractmethod
    def findings(self, result: ResultT) -> dict[str, Any]:
        """Return what the trace tells of a result, besides."""

    @abstractmethod
    def succeeded(self, spec: SpecT, result: ResultT) -> None:
        """Take a result in; its outputs are held by the task until this returns."""

    @abstractmethod
    def given_up(self, spec: SpecT, failure: Failure, verdict: Verdict) -> None:
        """Go on without a task that failed; for good, or until the campaign is resumed (``again``)."""

    def given_up_state(self, verdict: Verdict) -> State:
        """Return what the ledger calls a task that is given up for good."""
        return "fizzled"

    @property
    def tries_again(self) -> bool:
        """Whether a task that failed is sent again in this process, if it is to be tried again at all."""
        return self.state.ending is None

    # What they share --------------------------------------------------------------------------------------------

    def begin_task(
        self, spec: SpecT, bundle: int | None = None, place: Destination | None = None, **origin: Any
    ) -> None:
        """Record a new task and send it.

        Parameters
        ----------
        place
            Where to; None to leave it to the topic.
        origin
            What `Ledger.add_task` takes besides.
        """
        place = place or self.new_place()
        self.record(spec, bundle, place, **origin)
        self.send(spec, place, bundle)

    def record(self, spec: SpecT, bundle: int | None = None, place: Destination | None = None, **origin: Any) -> None:
        """Record a new task, with what `Ledger.add_task` takes besides; it may still be sent elsewhere."""
        place = place or self.new_place()
        told = encode(without_system(spec))
        self.state.ledger.add_task(task_id(spec), self.kind, place.executor, spec=told, bundle=bundle, **origin)

    def take_up(self, task: OpenTask) -> None:
        """Send again what was out when an earlier process of the campaign ended, or what is to run once more."""
        spec = decode(self.spec_type, task.spec, self.state.stores)
        found = self.found(self.renewed(replace(spec, attempt=task.attempts + 1)))
        if found is None:
            logger.warning("%s task %d cannot be sent again: its data are lost from their store", self.topic, task.id)
            self.state.ledger.set_state(task.id, "fizzled")
            self.not_recalled(spec)
            return
        self.recalled(task, found)
        self.send_again(task, found, tuple(signature(*failure) for failure in task.failures))

    def send_again(self, task: OpenTask, spec: SpecT, failures: tuple[tuple[str, str], ...]) -> None:
        """Send a task of an earlier process once more."""
        self.state.ledger.set_state(task.id, "running")
        self.send(spec, self.recalled_to(task), task.bundle, failures)

    def recalled(self, task: OpenTask, spec: SpecT) -> None:
        """Get ready for a task of an earlier process."""

    def recalled_to(self, task: OpenTask) -> Destination:
        """Return where a task of an earlier process goes, whose sites may have been others."""
        return self.new_place()

    def not_recalled(self, spec: SpecT) -> None:
        """Go on without a task of an earlier process whose data are lost."""

    def found(self, spec: SpecT) -> SpecT | None:
        """Return a spec of an earlier process with its data where they lie now; None if they are lost."""
        where = {ref: self.state.find(ref, self.topic) for ref in self.inputs(spec)}
        if None in where.values():
            return None
        values = ((field.name, getattr(spec, field.name)) for field in fields(spec))
        moved: dict[str, Any] = {
            name: where[value] for name, value in values if isinstance(value, Ref) and value in where
        }
        return replace(spec, **moved)

    def renewed(self, spec: SpecT) -> SpecT:
        """Return a spec of an earlier process as this one sends it: same work, today's addresses."""
        here: dict[str, Any] = {"store": self.destination.store, "run_dir": self.destination.run_dir}
        here["system"] = self.state.molecule.refs["infer" if self.topic in ("infer", "coordinate") else "simulate"]
        here["scratch"] = self.destination.scratch
        known = {field.name for field in fields(spec)}
        return replace(spec, **{name: value for name, value in here.items() if name in known})

    def send(
        self,
        spec: SpecT,
        place: Destination,
        bundle: int | None = None,
        failures: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Record an attempt and put it in the outbox; those of one bundle are put there one after the other."""
        now = time.monotonic()
        for ref in self.inputs(spec):
            self.state.hold(ref, ("task", task_id(spec)))
        # Where others share the workers, a task waits behind theirs.
        deadline = now + self.state.settings.task_timeout * self.state.pool.shared_by()
        spec = self._put_out(spec, place, bundle)
        self.in_flight[task_id(spec)] = InFlight(spec, deadline, place, failures, now, newest=spec.attempt)

    def send_rival(self, flight: InFlight[SpecT]) -> None:
        """Send another attempt at a task that takes long, elsewhere where there is an elsewhere."""
        newest = flight.newest + 1
        rival = self._put_out(replace(flight.spec, attempt=newest), self._other_place(flight.place), None)
        self.in_flight[task_id(rival)] = replace(flight, rivals=(*flight.rivals, rival), newest=newest)

    def _put_out(self, spec: SpecT, place: Destination, bundle: int | None) -> SpecT:
        """Record an attempt and put it in the outbox; return it as it is sent."""
        if not isinstance(spec, MoveSpec | HookSpec | GatherSpec | CoordinateSpec | GlanceSpec):
            spec = replace(spec, run_dir=place.run_dir)
        self.state.ledger.begin_attempt(task_id(spec), spec.attempt, place.site, place.executor)
        self.state.counts.n_sent[self.topic] += 1
        info = {"attempt": spec.attempt, "executor": place.executor, "site": place.site, **self.info(spec)}
        self.state.outbox.sends.append(Send(self.topic, place.method, spec, info, bundle))
        return spec

    def handle_all(self, outcomes: Iterable[Outcome]) -> None:
        """Commit what became of several attempts."""
        for outcome in outcomes:
            self.handle(outcome)

    def handle(self, outcome: Outcome) -> None:
        """Commit what became of an attempt, and try again, go on, or give up."""
        flight = self.in_flight.get(outcome.task_id)
        if flight is None or all(each.attempt != outcome.attempt for each in flight.attempts):
            self._note_late(outcome)
            return
        self._note(outcome, outcome.failure.kind if outcome.failure else "success")
        if outcome.failure is not None:
            self._one_failed(flight, outcome.attempt, outcome.failure)
            return
        del self.in_flight[outcome.task_id]
        for each in flight.attempts:
            if each.attempt != outcome.attempt:
                self.state.ledger.end_attempt(outcome.task_id, each.attempt, "outpaced")
        self.done(flight.spec, outcome.value)
        self.state.outbox.published += self.files(outcome.value)
        for ref in self.outputs(outcome.value):
            self.state.hold(ref, ("task", outcome.task_id))
        self._count_compute(outcome, flight.place)
        self.arrived(flight.spec, outcome.value)

    def done(self, spec: SpecT, result: ResultT) -> None:
        """Record that a task is done."""
        self.state.ledger.complete(task_id(spec))

    def arrived(self, spec: SpecT, result: ResultT) -> None:
        """Apply a result now; a topic whose order matters may wait."""
        self.apply(spec, result)

    def apply(self, spec: SpecT, result: ResultT) -> None:
        """Take a result in and let go of what its task held."""
        self.succeeded(spec, result)
        self.state.release([*self.inputs(spec), *self.outputs(result)], ("task", task_id(spec)))

    def overdue(self, now: float) -> list[InFlight[SpecT]]:
        """Return what is past its deadline."""
        return [flight for flight in self.in_flight.values() if now > flight.deadline]

    def expire(self, now: float) -> None:
        """Give up attempts past their deadline; a result that still comes is recorded and not applied."""
        limit = self.state.settings.task_timeout
        for flight in self.overdue(now):
            self._lose(flight, Failure("lost", f"no result within --task-timeout {limit:g} s{self._times()}"))

    def _times(self) -> str:
        sharing = self.state.pool.shared_by()
        return f", {sharing} times, as campaigns share the workers" if sharing > 1 else ""

    def strays(self) -> list[InFlight[SpecT]]:
        """Return what is at a site that is away or gone, while another is here."""
        pool = self.state.pool
        if self.topic not in POOLED or not 0 < len(pool.here) < len(pool.places):
            return []
        return [flight for flight in self.in_flight.values() if pool.presence(flight.place) != "here"]

    def withdraw(self) -> None:
        """Give up the attempts at sites that are away or gone; nobody knows whether a result will come."""
        for flight in self.strays():
            self._lose(flight, Failure("site_gone", f"site {flight.place.site} has no workers any more"))

    def _lose(self, flight: InFlight[SpecT], failure: Failure) -> None:
        for each in flight.attempts:
            self.state.ledger.end_attempt(task_id(each), each.attempt, failure.kind, error=failure.message)
        self.state.counts.failures[failure.kind] += len(flight.rivals)
        self._failed(flight, failure)

    def _one_failed(self, flight: InFlight[SpecT], attempt: int, failure: Failure) -> None:
        """Wait for the attempts that are still out, if there are any."""
        left = [each for each in flight.attempts if each.attempt != attempt]
        if not left:
            self._failed(flight, failure)
            return
        self.state.counts.failures[failure.kind] += 1
        self.in_flight[task_id(flight.spec)] = replace(
            flight, spec=left[0], rivals=tuple(left[1:]), failures=(*flight.failures, failure.signature)
        )

    def _failed(self, flight: InFlight[SpecT], failure: Failure) -> None:
        spec, failures = flight.spec, (*flight.failures, failure.signature)
        self.state.counts.failures[failure.kind] += 1
        logger.warning(
            "%s task %d, attempt %d: %s: %s", self.topic, task_id(spec), spec.attempt, failure.kind, failure.message
        )
        del self.in_flight[task_id(spec)]
        judged = verdict(failures, self.state.settings.max_attempts)
        if judged == "again" and self.tries_again:
            place = self._other_place(flight.place)
            self.send(replace(spec, attempt=flight.newest + 1), place, failures=failures)
            return
        self.state.ledger.set_state(task_id(spec), "ready" if judged == "again" else self.given_up_state(judged))
        self.given_up(spec, failure, judged)
        # What a later process goes on with, or what a person may let run again, keeps its inputs.
        if judged != "again" and not self.reruns:
            self.state.release(self.inputs(spec), ("task", task_id(spec)))

    def _note(self, outcome: Outcome, word: str) -> None:
        """Write an attempt's end and its trace line."""
        failure = outcome.failure
        self.state.ledger.end_attempt(
            outcome.task_id,
            outcome.attempt,
            word,
            error=None if failure is None else failure.told,
            host=outcome.host,
            worker=outcome.worker,
        )
        self._trace(outcome)

    def _trace(self, outcome: Outcome, **more: Any) -> None:
        """Write a trace line, which reaches the file after the commit."""
        line = outcome.line({**({} if outcome.value is None else self.findings(outcome.value)), **more})
        self.state.ledger.add_record(self.topic, outcome.task_id, outcome.attempt, line)
        self.state.outbox.records.append((self.topic, line))

    def _note_late(self, outcome: Outcome) -> None:
        """Record a result of an attempt that was given up; its data are evicted, unless they were applied."""
        self.state.ledger.mark_late(outcome.task_id, outcome.attempt, host=outcome.host, worker=outcome.worker)
        self._trace(outcome, late=True)
        if outcome.value is not None:
            self.state.outbox.discarded += self.files(outcome.value)
            for ref in self.outputs(outcome.value):
                self.state.hold(ref, "late")
                self.state.release([ref], "late")

    def _count_compute(self, outcome: Outcome, place: Destination) -> None:
        if outcome.started is not None and outcome.ended is not None:
            self.state.counts.compute_s[place.site, self.topic] += outcome.ended - outcome.started


def task_id(spec: TaskSpec) -> int:
    """Return a task's id in the ledger."""
    return spec.segment_id if isinstance(spec, SegmentSpec) else spec.task_id


def without_system(spec: SpecT) -> SpecT:
    """Return a spec as the ledger keeps it: every process ships the system anew, and batches are of one process."""
    if isinstance(spec, GlanceSpec):
        return replace(spec, batches=(), reference=Ref(spec.store, data=b""), model=None)
    if isinstance(spec, MoveSpec) and spec.cargo[0] == "batch":
        return replace(spec, source=Ref(spec.store, data=b""))
    if isinstance(spec, SegmentSpec | EquilibrateSpec | EmbedSpec | CoordinateSpec):
        return replace(spec, system=Ref(spec.store, data=b""))
    return spec


def task_seed(campaign_seed: int, *of: int) -> int:
    """Return the seed of a task's velocities and thermostat (never 0, which OpenMM takes for "any").

    Parameters
    ----------
    of
        Its id, or whatever else tells it from the campaign's others.
    """
    return 1 + int(np.random.SeedSequence([campaign_seed, *of]).generate_state(1)[0]) % (2**31 - 2)
