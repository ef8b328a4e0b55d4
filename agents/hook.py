"""The hook topic: what the user has run beside segments and after the campaign, on the submit host.

Hooks of one moment are a chain: each waits for the one before it, and one that is given up takes the rest of its
chain with it, never the segment.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.attempts import Failure, Verdict, signature
from agents.state import CampaignState, Start
from agents.topic import TopicAgent
from campaign.ledger import OpenTask
from campaign.wire import decode
from tasks.hook import REACHED
from tasks.messages import HookResult, HookSpec, Moment, Ref, SegmentResult, SegmentSpec, SegmentSummary

logger = logging.getLogger(__name__)

# Which chain: its moment, and the segment that it is about.
Chain = tuple[Moment, int | None]


@dataclass(frozen=True, slots=True)
class _Due:
    """A hook that waits for a worker, and the signatures of the attempts of earlier processes that failed."""

    spec: HookSpec
    failures: tuple[tuple[str, str], ...] = ()


class HookAgent(TopicAgent[HookSpec, HookResult]):
    """Chains of hooks, and how far each of them is.

    Sent are as many as there are workers, so that a deadline bounds a hook and not the queue before it.

    Parameters
    ----------
    release
        Told the segment whose hooks before it are done or given up.

    Attributes
    ----------
    concluded_at
        After how many segments the hooks after the campaign were begun, in this process or an earlier one.
    """

    topic = "hook"
    kind = "hook"
    spec_type = HookSpec

    def __init__(self, state: CampaignState, release: Callable[[int], None]) -> None:
        super().__init__(state)
        self.concluded_at: int | None = None
        self._release = release
        self._due: deque[_Due] = deque()
        # Of every chain that is not over, what waits for the hook that is due or out.
        self._waiting: dict[Chain, deque[HookSpec]] = {}
        self._told: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether a hook is due or out; after a signal nobody waits for one, and a later process runs it again."""
        return not self.state.stopped and bool(self._waiting)

    @property
    def asking(self) -> bool:
        """Whether it is not known yet if the campaign is to go on."""
        return any(moment == "continue-until" for moment, _ in self._waiting)

    # What is begun ----------------------------------------------------------------------------------------------

    def before_segment(self, spec: SegmentSpec, start: Start) -> bool:
        """Begin what comes before a segment; return False where nothing does."""
        return self._begin("before-segment", self.state.settings.before_segment, planned(spec, start))

    def after_segment(self, spec: SegmentSpec, start: Start, result: SegmentResult) -> bool:
        """Begin what comes after a segment; return False where nothing does."""
        settings = self.state.settings
        asked = () if settings.continue_until is None else (settings.continue_until,)
        if not (settings.after_segment or asked):
            return False
        segment = summary(spec, start, result)
        begun = self._begin("after-segment", settings.after_segment, segment)
        return self._begin("continue-until", asked, segment) or begun

    def conclude(self) -> None:
        """Begin what comes after the campaign."""
        self.concluded_at = self.state.counts.segments
        self._begin("after-campaign", self.state.settings.after_campaign, None)

    def _begin(self, moment: Moment, hooks: tuple[str, ...] | None, segment: SegmentSummary | None) -> bool:
        for hook in hooks or ():
            spec = HookSpec(
                task_id=self.state.new_task_id(),
                attempt=1,
                moment=moment,
                hook=hook,
                segment=segment,
                run_dir=self._run_dir,
                here=str(Path.cwd()),
                timeout_s=self.state.settings.hook_timeout,
            )
            origin: dict[str, Any] = (
                {} if segment is None else {"parent_id": segment.segment_id, "iteration": segment.iteration}
            )
            state = "waiting" if chain(spec) in self._waiting else "ready"
            self.record(spec, state=state, **origin)
            self._queue(_Due(spec))
        return bool(hooks)

    def _queue(self, due: _Due) -> None:
        if chain(due.spec) in self._waiting:
            self._waiting[chain(due.spec)].append(due.spec)
        else:
            self._waiting[chain(due.spec)] = deque()
            self._due.append(due)

    @property
    def _run_dir(self) -> str:
        run_dir = self.destination.run_dir
        assert run_dir is not None  # the submit host made it
        return run_dir

    def fill(self) -> None:
        """Send what is due, as far as there are workers."""
        while self._due and self._has_room() and not self.state.quiet:
            due = self._due.popleft()
            self.state.ledger.set_state(due.spec.task_id, "running")
            self.send(due.spec, self.destination, failures=due.failures)

    def _has_room(self) -> bool:
        """Return whether a worker is free, of those that are this campaign's part."""
        return len(self.in_flight) < math.ceil(self.destination.slots / self.state.pool.shared_by())

    # What comes back --------------------------------------------------------------------------------------------

    def succeeded(self, spec: HookSpec, result: HookResult) -> None:
        """Keep its numbers, and let the next of its chain follow."""
        segment_id = None if spec.segment is None else spec.segment.segment_id
        self.state.ledger.add_hook_values(spec.task_id, segment_id, spec.hook, result.values)
        if spec.moment == "continue-until" and result.values[REACHED]:
            self.state.reach_until(f"--continue-until {spec.hook} was true after segment {segment_id}")
        left = self._waiting[chain(spec)]
        if left:
            self.state.ledger.set_state(left[0].task_id, "ready")
            self._due.append(_Due(left.popleft()))
        else:
            self._end(chain(spec))

    def given_up(self, spec: HookSpec, failure: Failure, verdict: Verdict) -> None:
        """Give up the rest of its chain, unless a later process tries again."""
        if verdict == "again":
            return
        for after in self._waiting[chain(spec)]:
            self.state.ledger.set_state(after.task_id, "fizzled")
        where = "" if spec.segment is None else f" of segment {spec.segment.segment_id}"
        sentence = f"hook{where} given up after {spec.attempt} attempts: {failure.message}"
        logger.warning("%s", sentence)
        if spec.hook not in self._told:
            self._told.add(spec.hook)
            self.state.outbox.notes.append(f"{sentence} (of this hook, only the log tells further ones)")
        self._end(chain(spec))

    def _end(self, ended: Chain) -> None:
        del self._waiting[ended]
        moment, segment_id = ended
        if moment == "before-segment":
            assert segment_id is not None  # it is about one
            self._release(segment_id)

    @property
    def tries_again(self) -> bool:
        """Whether one that failed is sent again: also when no more segments are."""
        return not self.state.quiet

    # What an earlier process left -------------------------------------------------------------------------------

    def take_up(self, task: OpenTask) -> None:
        """Queue what was due, out or waiting; called in the order of ids, which is that of each chain."""
        told = decode(HookSpec, task.spec, self.state.stores)
        spec = self.renewed(replace(told, attempt=task.attempts + 1))
        self.state.ledger.set_state(task.id, "waiting" if chain(spec) in self._waiting else "ready")
        self._queue(_Due(spec, tuple(signature(*failure) for failure in task.failures)))

    def renewed(self, spec: HookSpec) -> HookSpec:
        """Return a spec of an earlier process with today's place and patience."""
        timeout_s = self.state.settings.hook_timeout
        return replace(spec, run_dir=self._run_dir, here=str(Path.cwd()), timeout_s=timeout_s)

    # What is told -----------------------------------------------------------------------------------------------

    def inputs(self, spec: HookSpec) -> Iterable[Ref]:
        """Return nothing: hooks read the run directory."""
        return ()

    def outputs(self, result: HookResult) -> Iterable[Ref]:
        """Return nothing: numbers travel in the message."""
        return ()

    def info(self, spec: HookSpec) -> dict[str, Any]:
        """Return what is run, and for which segment."""
        about = {} if spec.segment is None else {"segment_id": spec.segment.segment_id}
        return {"task_id": spec.task_id, **about, "moment": spec.moment, "hook": spec.hook}

    def findings(self, result: HookResult) -> dict[str, Any]:
        """Return its numbers."""
        return {"values": result.values, "seconds": result.seconds}


def chain(spec: HookSpec) -> Chain:
    """Return the chain that a hook belongs to."""
    return spec.moment, None if spec.segment is None else spec.segment.segment_id


def planned(spec: SegmentSpec, start: Start) -> SegmentSummary:
    """Return what is known of a segment before it has run."""
    return SegmentSummary(
        segment_id=spec.segment_id,
        parent_id=spec.parent_id,
        parent_frame=spec.parent_frame,
        walker_id=spec.walker_id,
        iteration=spec.iteration,
        steered=start.steered,
        novelty=start.novelty,
    )


def summary(spec: SegmentSpec, start: Start, result: SegmentResult) -> SegmentSummary:
    """Return a segment that has run."""
    file = result.trajectory
    return replace(
        planned(spec, start),
        n_frames=result.n_frames,
        n_atoms=result.n_atoms,
        simulated_ps=result.simulated_ps,
        potential_energy_kj_mol=result.potential_energy_kj_mol,
        mean_temperature_K=result.mean_temperature_K,
        trajectory=None if file is None or file.node is not None else file.path,
    )
