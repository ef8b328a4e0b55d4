"""The campaign's logic as a whole, without queues: what follows from an outcome, and when the campaign is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from agents.coordinate import CoordinateAgent
from agents.equilibrate import EquilibrateAgent
from agents.gather import GatherAgent
from agents.glance import GlanceAgent
from agents.hook import HookAgent
from agents.infer import InferAgent
from agents.memory import remember
from agents.move import MoveAgent
from agents.questions import Questions
from agents.simulate import SimulateAgent
from agents.state import CampaignState, CandidateSet, Outbox
from agents.topic import Outcome, TopicAgent
from agents.train import TrainAgent
from agents.walkers import Basis, FreeWalkers, Walkers
from tasks.messages import Batch, Cargo, Ref, Topic

if TYPE_CHECKING:
    from agents.ensemble import EnsembleWalkers
    from campaign.method import Method

logger = logging.getLogger(__name__)


class Steering:
    """The agents of a campaign and the order in which they act.

    Results change the state (`TopicAgent.handle`); then `_advance` lets each agent send what has become due: the
    freed slot first, learning after it. In lockstep learning comes first and slots wait for it, so that decisions do
    not depend on the clock.

    Attributes
    ----------
    resumed
        Whether this process goes on with a campaign that an earlier one began.
    begun
        Whether this process has taken up what an earlier one left.
    n_objects_before
        Objects that were made in stores before this process began to send.
    offers
        Candidates on their way to where segments reach them, by number.
    """

    def __init__(self, state: CampaignState, basis: Ref, method: Method | None = None) -> None:
        self.state = state
        self.resumed = False
        self.begun = False
        self.n_objects_before = 0
        self.offers: dict[int, CandidateSet] = {}
        self._concluded = False
        self.ensembles: EnsembleWalkers | None = None
        self.hook = HookAgent(state, lambda segment_id: self.simulate.release(segment_id))
        self.walkers = self._walkers(Basis(state, basis), method)
        walkers = self.walkers
        self.simulate = SimulateAgent(state, walkers, self.hook)
        self.equilibrate = EquilibrateAgent(state, walkers)
        self.infer = InferAgent(state)
        self.train = TrainAgent(state)
        self.move = MoveAgent(state, self._deliver)
        self.glance = GlanceAgent(state, self.simulate.attempt_of, self.move.bring)
        coordinate = None if method is None else method.coordinate
        self.coordinate = CoordinateAgent(state, coordinate, self._bin)
        self.questions = Questions(state, walkers.basis.starts, self.move.bring, self.coordinate.compute)
        self.gather = GatherAgent(state, self.simulate)
        self.agents: dict[Topic, TopicAgent] = {  # type: ignore[type-arg]  # each topic has types of its own
            agent.topic: agent
            for agent in (
                self.equilibrate, self.simulate, self.infer, self.glance, self.coordinate, self.train, self.move,
                self.gather, self.hook,
            )
        }  # fmt: skip

    def begin(self) -> Outbox:
        """Return the basis states to equilibrate, or else the first segments; in a later process what was out."""
        return self._decide(self._begin)

    def handle(self, topic: Topic, *outcomes: Outcome) -> Outbox:
        """Return what follows from the outcomes of a bundle, once the ledger has them."""
        return self._decide(lambda: self.agents[topic].handle_all(outcomes))

    def hear(self, batches: Sequence[Batch]) -> Outbox:
        """Take in batches of segments that run."""
        return self._decide(lambda: self.glance.hear(batches))

    def keep_time(self) -> Outbox:
        """Give up what is past its deadline, and end when the time is up."""
        now = time.monotonic()
        with self.state.lock:
            due = any(agent.overdue(now) or agent.strays() for agent in self.agents.values())
            due = due or self._time_is_up(now) or self.state.pool.differs(now)
            due = due or (self.state.end_of_time is not None and now > self.state.end_of_time)
            due = due or self._concludes() or bool(self.simulate.stragglers(now))
        return self._decide(lambda: self._check_clock(now)) if due else Outbox()

    def stop(self, reason: str) -> Outbox:
        """Send nothing more; what still comes back is kept."""
        return self._decide(lambda: self._stop(reason))

    def pause(self, reason: str | None) -> Outbox:
        """Send nothing for the time being; None: go on."""
        return self._decide(lambda: setattr(self.state, "paused", reason))

    def note_decision(self, milliseconds: float) -> None:
        """Note how long a freed slot waited for its next segment to be sent."""
        with self.state.lock:
            self.state.counts.decisions_ms.append(milliseconds)
            self.state.counts.n_decisions += 1

    @property
    def finished(self) -> bool:
        """Whether nothing is out and nothing more will be sent."""
        with self.state.lock:
            if self.state.failure is not None:
                return True
            return self.begun and self._is_done() and not self._concludes()

    @property
    def waits_for_hooks(self) -> bool:
        """Whether the user's hooks are not done, which the end of the campaign's time does not cut short."""
        with self.state.lock:
            return not self.state.quiet and (self.hook.busy or self._has_conclusion())

    def _is_done(self) -> bool:
        """Return whether nothing is out, and nothing is left to be learnt."""
        idle = not any(agent.busy for agent in self.agents.values())
        seen = self.state.quiet or not (self.state.frames_to_look_at or self.state.unobserved)
        return self._no_more_segments() and idle and seen and self.gather.settled

    def _has_conclusion(self) -> bool:
        """Return whether hooks are to be run after the campaign, and were not begun."""
        return bool(self.state.settings.after_campaign) and not self._concluded

    def _concludes(self) -> bool:
        """Return whether it is time for the hooks after the campaign: it is done, or what is out has no time left."""
        if not self.begun or self.state.quiet or not self._has_conclusion():
            return False
        return self._is_done() or time.monotonic() > self.state.ended_at + self.state.settings.grace_s

    def _decide(self, change: Callable[[], None] | None = None) -> Outbox:
        with self.state.lock:
            try:
                with self.state.ledger.transaction():
                    self._look_at_sites()
                    if change is not None:
                        change()
                    self._withdraw()
                    self._advance()
                    remember(self)
                    return self.state.take_outbox()
            except BaseException:
                # Decided and not committed: no later decision may send it.
                self.state.take_outbox()
                raise

    def _look_at_sites(self) -> None:
        for sentence in self.state.pool.look(time.monotonic()):
            logger.warning("%s", sentence)
            self.state.outbox.notes.append(sentence)

    def _withdraw(self) -> None:
        for agent in self.agents.values():
            agent.withdraw()

    def _begin(self) -> None:
        self.begun = True
        if not self.resumed:
            if self.state.model is not None:
                self.state.ledger.keep("model", self.state.model)
            self.equilibrate.begin()
            return
        by_kind = {agent.kind: agent for agent in self.agents.values()}
        for task in self.state.ledger.open_tasks("ready", "waiting"):
            by_kind[task.kind].take_up(task)
        # After all that is out has a hold of its start: what is complete lets go of its own.
        self.gather.take_found()
        self.gather.run_again_of(self.state.emptied)
        self._concluded = self.hook.concluded_at == self.state.counts.segments
        self.state.holds.recount(self.n_objects_before)

    def _stop(self, reason: str) -> None:
        self.state.stopped = True
        self.state.end(reason)

    def _advance(self) -> None:
        self._decide_segments()
        if self._concludes():
            self._concluded = True
            self.hook.conclude()
        self.hook.fill()

    def _decide_segments(self) -> None:
        self.gather.take_reported()
        if self.state.ending is not None:
            self.simulate.let_go()
        self._hand_on()
        self._send_what_is_due()
        while not self._waits_for_learning() and self.simulate.apply_next():
            if not self.state.settings.lockstep:
                self._fill()
            self._hand_on()
            self._send_what_is_due()
        self.gather.settle(over=self._no_more_segments() and not self.simulate.busy)
        # What cannot be had again leaves room for others.
        if not self.simulate.busy and self.simulate.wants_more():
            self._send_what_is_due()

    def _send_what_is_due(self) -> None:
        """Send segments and learning; called after each result, so that in lockstep each meets the same state."""
        if self.equilibrate.busy:
            return
        if not self.state.settings.lockstep:
            self._fill()
        self._learn()
        if self.state.settings.lockstep and not self._waits_for_learning():
            self._fill()
            # What binning needs is asked for there, and slots wait for it.
            self._learn()

    def _fill(self) -> None:
        self.walkers.advance()
        self.simulate.fill()

    def _learn(self) -> None:
        if self.state.paused is not None:
            return
        self.questions.send()
        self.train.refine()
        self.glance.look()
        # What is learnt from the last segments is part of the campaign: coverage counts their frames.
        self.infer.look(last=self._no_more_segments() and not self.move.busy)

    def _waits_for_learning(self) -> bool:
        busy = self.infer.busy or self.train.busy or self.coordinate.busy or self.move.busy or self.hook.asking
        return self.state.settings.lockstep and busy

    def _no_more_segments(self) -> bool:
        return self.simulate.n_pending == 0 and not self.simulate.wants_more()

    def _hand_on(self) -> None:
        """Bring frames to inference and candidates to simulation, wherever their stores are."""
        state = self.state
        if state.quiet:
            return
        while state.frames_to_look_at:
            segment_id, frames = state.frames_to_look_at.popleft()
            self.move.bring(("frames", segment_id), frames)
        while state.offered:
            offer = state.offered.popleft()
            self.offers[offer.number] = offer
            self.move.bring(("offer", offer.number), offer.ref)

    def _walkers(self, basis: Basis, method: Method | None) -> Walkers:
        if method is None:
            return FreeWalkers(self.state, basis)
        # WESTPA takes a second to import, which other campaigns need not wait for.
        from agents.ensemble import EnsembleWalkers

        self.ensembles = EnsembleWalkers(self.state, basis, method, lambda question: self.questions.ask(question))
        return self.ensembles

    def _bin(self, version: int, pcoord: Mapping[int, np.ndarray], basis: Mapping[int, np.ndarray]) -> None:
        assert self.ensembles is not None
        self.ensembles.embedded(version, pcoord, basis)

    def _deliver(self, cargo: Cargo, ref: Ref, reachable: Ref | None) -> None:
        """Take what was to be brought from ``ref``, where its consumer reaches it."""
        what, number = cargo
        if what == "frames":
            self.walkers.reached(number, reachable)
            self._observe(number, ref, reachable)
        elif what == "batch":
            self.glance.reached(number, ref, reachable)
        elif what == "basis":
            self.questions.arrived(number, reachable)
        else:
            self._offer(self.offers.pop(number), reachable)

    def _observe(self, segment_id: int, frames: Ref, reachable: Ref | None) -> None:
        if reachable is not None:
            self.state.hold(reachable, ("unobserved", segment_id))
            self.state.unobserved.append((segment_id, reachable))
        if reachable != frames:
            self.state.release([frames], ("unobserved", segment_id))
            self._keep_frames(segment_id, reachable)

    def _keep_frames(self, segment_id: int, reachable: Ref | None) -> None:
        key = f"frames/{segment_id}"
        if reachable is None:
            self.state.ledger.forget(key)
        else:
            self.state.ledger.keep(key, reachable)

    def _offer(self, offer: CandidateSet, reachable: Ref | None) -> None:
        state = self.state
        state.ledger.forget(f"offer/{offer.number}")
        # Moves of two offers may end in either order.
        newer = state.candidates is None or offer.number > state.candidates.number
        if reachable is not None and newer:
            state.hold(reachable, "candidates")
            if state.candidates is not None:
                state.release([state.candidates.ref], "candidates")
            state.candidates = replace(offer, ref=reachable, since=state.next_segment_id)
            state.ledger.keep("candidates", state.candidates.told())
        state.release([offer.ref], "offered")

    def _check_clock(self, now: float) -> None:
        for agent in self.agents.values():
            agent.expire(now)
        self.simulate.overtake(now)
        if self._time_is_up(now):
            self.state.end(f"--max-minutes {self.state.settings.max_minutes:g} are over")

    def _time_is_up(self, now: float) -> bool:
        minutes = self.state.settings.max_minutes
        return minutes is not None and now - self.state.began > 60 * minutes and self.state.ending is None
