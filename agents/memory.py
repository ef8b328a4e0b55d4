"""What a later process of the campaign must know: written with every decision, and read back when it goes on.

The ledger keeps, under names: ``state`` (numbers, the random generator), ``walker/I``, ``basis/I``, ``reference``,
``model``, ``candidates``, ``offer/N`` (candidates on their way), ``frames/ID`` (not looked at yet), ``arrived/ID``
(results that wait for those before them, in lockstep), and ``rerun/ID`` (a person wants it to run again, or only its
file is wanted). What is out is in its tasks.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.simulate import ITS_FILE, Arrived
from agents.state import CandidateSet, Learnt
from campaign.wire import decode
from tasks.messages import Coverage, EmbedSpec, MoveSpec, Ref, SegmentSpec, Topic

if TYPE_CHECKING:
    from agents.steering import Steering

_NUMBERS = (
    "next_segment_id", "next_other_id", "observed_segments", "inference_failures", "reference_version", "trained_at",
    "model_version",
)  # fmt: skip
_COUNTS = ("segments", "steered", "frames", "simulated_ps", "inferences", "n_decisions")

logger = logging.getLogger(__name__)


def remember(steering: Steering) -> None:
    """Write what changes with every decision."""
    state, counts = steering.state, steering.state.counts
    told: dict[str, Any] = {name: getattr(state, name) for name in _NUMBERS}
    told |= {name: getattr(counts, name) for name in _COUNTS}
    told |= {
        "rng": state.rng.bit_generator.state,
        "failures": counts.failures,
        "watched": counts.watched,
        "fed": counts.fed,
        "n_sent": counts.n_sent,
        "compute_s": [[site, topic, seconds] for (site, topic), seconds in counts.compute_s.items()],
        "span_s": counts.span_s,
        "coverage": state.coverage,
        "reference_files": list(state.reference_files),
        "next_to_apply": steering.simulate.next_to_apply,
        "proxies": state.holds.created,
        "elapsed_s": state.elapsed_s,
        "concluded_at": steering.hook.concluded_at,
        "until": None if state.until is None else {"reason": state.until, "ends": state.settings.ends},
    }
    state.ledger.keep("state", told | steering.simulate.walkers.told())


class Recollection:
    """Reads back what `remember` and the agents wrote; nothing that an earlier process sent may be out any more."""

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._state = steering.state
        self._ledger = steering.state.ledger
        self._open = self._ledger.open_tasks("ready", "waiting")
        self._n_new = len(steering.state.holds)

    def restore(self) -> None:
        """Put the steering where the last commit left it; nothing happens where there was none."""
        told = self._ledger.kept("state").get("")
        if told is None:
            return
        self._steering.resumed = True
        self._restore_numbers(told)
        self._restore_learning()
        self._restore_candidates()
        self._restore_walkers()
        self._restore_computed()
        self._restore_arrived()
        self._restore_frames()
        self._restore_offers()
        self._hold_given_up()
        self._steering.n_objects_before = told["proxies"] + self._n_new

    def _restore_numbers(self, told: dict[str, Any]) -> None:
        state, counts, simulate = self._state, self._state.counts, self._steering.simulate
        for name in _NUMBERS:
            setattr(state, name, told[name])
        for name in _COUNTS:
            setattr(counts, name, told[name])
        state.rng.bit_generator.state = told["rng"]
        counts.failures = Counter(told["failures"])
        counts.watched = Counter(told.get("watched", {}))
        counts.fed = Counter(told.get("fed", {}))
        counts.n_sent = Counter(told["n_sent"])
        counts.compute_s.update({(site, topic): seconds for site, topic, seconds in told["compute_s"]})
        counts.span_before_s = told["span_s"]
        counts.sent_before, counts.segments_before = counts.n_sent["simulate"], counts.segments
        if told["coverage"] is not None:
            state.coverage = decode(Coverage, told["coverage"], state.stores)
        state.reference_files.extend(told["reference_files"])
        state.elapsed_before_s = told["elapsed_s"]
        self._steering.hook.concluded_at = told["concluded_at"]
        if told["until"] is not None and told["until"]["ends"] == list(state.settings.ends):
            state.until = told["until"]["reason"]
        state.quarantine |= self._ledger.quarantined("simulate") | self._ledger.quarantined("equilibrate")
        counts.quarantined = len(state.quarantine)  # a person may have let some go
        simulate.next_to_apply = told["next_to_apply"]

    def _restore_learning(self) -> None:
        state = self._state
        told = {name: self._ledger.kept(name).get("") for name in ("model", "reference")}
        if told["model"] is not None:
            ref, version = self._learnt("model", told["model"], state.model_version)
            state.model, state.model_version = ref, version
        if told["reference"] is not None:
            state.reference, state.reference_version = self._learnt(
                "reference", told["reference"], state.reference_version
            )

    def _learnt(self, what: Learnt, told: object, version: int) -> tuple[Ref | None, int]:
        """Return the newest model or reference set that is left, with its model version."""
        found = self._found(told, "infer")
        left = (found, version) if found is not None else self._state.recover(what)
        if left is None:
            self._state.warn(f"the {what} of the campaign is lost: learning begins anew")
            return None, 0
        if found is None:
            self._state.warn(f"the {what} is taken from the run directory's files (model version {left[1]})")
        self._state.hold(left[0], what)
        return left

    def _restore_candidates(self) -> None:
        state = self._state
        told = self._ledger.kept("candidates").get("")
        if told is not None and (candidates := self._candidates(told, "simulate")) is not None:
            chosen = self._ledger.chosen_since(candidates.since)
            candidates.used[:] = [chosen.get(origin, 0) for origin in candidates.ids]
            state.hold(candidates.ref, "candidates")
            state.candidates = candidates

    def _restore_walkers(self) -> None:
        simulate, walkers = self._steering.simulate, self._steering.simulate.walkers
        for number, told in self._ledger.kept("basis/").items():
            if (ref := self._found(told, "simulate")) is not None:
                walkers.basis.move(int(number), ref)
            else:
                self._state.warn(
                    f"basis state {number} is taken as it was before equilibration, which is lost from the store"
                )
        simulate.running_again |= set(map(int, self._ledger.kept("rerun/")))
        sent_again = (
            task for task in self._open if task.kind == "simulate" and task.id not in simulate.running_again
        )
        walkers.restore({task.id: decode(SegmentSpec, task.spec, self._state.stores) for task in sent_again})

    def _restore_computed(self) -> None:
        """Keep what is needed to run segments again whose trajectories are not in the run directory."""
        simulate = self._steering.simulate
        again = self._ledger.kept("rerun/")
        simulate.again |= {int(number) for number, why in again.items() if why == ITS_FILE}
        for task in self._ledger.open_tasks("computed"):
            simulate.keep_start(decode(SegmentSpec, task.spec, self._state.stores))

    def _restore_arrived(self) -> None:
        simulate = self._steering.simulate
        for told in self._ledger.kept("arrived/").values():
            arrived = decode(Arrived, told, self._state.stores)
            simulate.walkers.awaits(arrived.spec)
            simulate.await_turn(arrived)

    def _restore_frames(self) -> None:
        looked_at, on_their_way, lost = self._looked_at(), self._on_their_way(), []
        for number, told in self._ledger.kept("frames/").items():
            if int(number) in looked_at:
                continue
            ref = self._found(told, "infer")
            if ref is None:
                lost.append(number)
                self._ledger.forget(f"frames/{number}")
                continue
            self._state.hold(ref, ("unobserved", int(number)))
            if ("frames", int(number)) not in on_their_way:
                self._state.frames_to_look_at.append((int(number), ref))
        if lost:
            self._state.warn(
                f"no inference will look at segments {', '.join(lost)}: their frames are lost from the store"
            )

    def _looked_at(self) -> set[int]:
        """Return the segments of inferences that are sent again."""
        specs = (decode(EmbedSpec, task.spec, self._state.stores) for task in self._open if task.kind == "infer")
        return {segment_id for spec in specs for segment_id, _ in spec.batches}

    def _on_their_way(self) -> set[tuple[str, int]]:
        """Return the cargo of moves that are sent again."""
        moves = (task for task in self._open if task.kind == "move" and "move" in self._state.destinations)
        return {decode(MoveSpec, task.spec, self._state.stores).cargo for task in moves}

    def _restore_offers(self) -> None:
        on_their_way = self._on_their_way()
        for told in self._ledger.kept("offer/").values():
            offer = self._candidates(told, "simulate")
            if offer is None:
                continue
            self._state.hold(offer.ref, "offered")
            if ("offer", offer.number) in on_their_way:
                self._steering.offers[offer.number] = offer
            else:
                self._state.offered.append(offer)

    def _hold_given_up(self) -> None:
        """Keep the inputs of what a person may let run again."""
        rerunning = {agent.kind: agent for agent in self._steering.agents.values() if agent.reruns}
        for task in self._ledger.open_tasks("fizzled", "quarantined"):
            if (agent := rerunning.get(task.kind)) is not None:
                for ref in agent.inputs(decode(agent.spec_type, task.spec, self._state.stores)):
                    self._state.hold(ref, ("task", task.id))

    def _candidates(self, told: dict[str, Any], topic: Topic) -> CandidateSet | None:
        ref = self._found(told["ref"], topic)
        if ref is None:
            self._state.warn(
                f"the candidates of inference {told['number']} are lost: segments start elsewhere until the next"
            )
            return None
        scores = np.array(told["scores"])
        ids = tuple((segment, frame) for segment, frame in told["ids"])
        return CandidateSet(told["number"], ref, ids, scores, np.zeros(len(scores), np.int64), told["since"])

    def _found(self, told: object, topic: Topic) -> Ref | None:
        return self._state.find(decode(Ref, told, self._state.stores), topic)
