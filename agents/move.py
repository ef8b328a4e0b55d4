"""The move topic: brings data into a store that their consumer reaches, by way of the submit host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from agents.attempts import Failure, Verdict
from agents.state import CampaignState
from agents.topic import TopicAgent
from campaign.ledger import OpenTask
from campaign.wire import decode
from tasks.messages import Cargo, MoveResult, MoveSpec, Ref, Topic

# Who needs what is moved.
_CONSUMER: dict[str, Topic] = {"frames": "infer", "batch": "infer", "offer": "simulate", "basis": "infer"}


class MoveAgent(TopicAgent[MoveSpec, MoveResult]):
    """Hands data on to a topic, by way of a `move` task where that topic's site cannot reach them."""

    topic = "move"
    kind = "move"
    spec_type = MoveSpec

    def __init__(self, state: CampaignState, deliver: Callable[[Cargo, Ref, Ref | None], None]) -> None:
        super().__init__(state)
        self._deliver = deliver

    def bring(self, cargo: Cargo, ref: Ref) -> None:
        """Deliver an address that the consumer reaches, now or after a move; None if that failed.

        Whoever calls holds ``ref`` until it is delivered.
        """
        destination = self.state.destinations[_CONSUMER[cargo[0]]]
        if ref.data is not None or ref.store.kind in destination.reaches:
            self._deliver(cargo, ref, ref)
            return
        task_id = self.state.new_task_id()
        self.begin_task(MoveSpec(task_id=task_id, attempt=1, cargo=cargo, source=ref, store=destination.store))

    def take_up(self, task: OpenTask) -> None:
        """Send again what an earlier process moved, but for batches: their segments run anew."""
        if decode(MoveSpec, task.spec, self.state.stores).cargo[0] == "batch":
            self.state.ledger.set_state(task.id, "fizzled")
        else:
            super().take_up(task)

    def renewed(self, spec: MoveSpec) -> MoveSpec:
        """Return a spec of an earlier process with today's target."""
        return replace(spec, store=self.state.destinations[_CONSUMER[spec.cargo[0]]].store)

    def succeeded(self, spec: MoveSpec, result: MoveResult) -> None:
        """Hand the new address on."""
        self._deliver(spec.cargo, spec.source, result.moved)

    def given_up(self, spec: MoveSpec, failure: Failure, verdict: Verdict) -> None:
        """Tell the consumer that nothing will come, unless it is tried again by a later process."""
        if verdict != "again":
            self._deliver(spec.cargo, spec.source, None)

    def inputs(self, spec: MoveSpec) -> Iterable[Ref]:
        """Return the data to move."""
        return (spec.source,)

    def outputs(self, result: MoveResult) -> Iterable[Ref]:
        """Return the moved data."""
        return (result.moved,)

    def info(self, spec: MoveSpec) -> dict[str, Any]:
        """Return where from and where to."""
        return {"task_id": spec.task_id, "source": spec.source.store.kind, "target": spec.store.kind}

    def findings(self, result: MoveResult) -> dict[str, Any]:
        """Return the size."""
        return {
            "payload_bytes": result.moved.n_bytes,
            "proxied": True,
            "store": result.moved.place,
            "seconds": result.seconds,
        }
