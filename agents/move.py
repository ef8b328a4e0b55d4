"""The move topic: brings data into a store that their consumer reaches, by way of the submit host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from agents.topic import Failure, TopicAgent
from tasks.messages import MoveResult, MoveSpec, Ref, Topic


class MoveAgent(TopicAgent[MoveSpec, MoveResult]):
    """Hands data on to a topic, by way of a `move` task where that topic's site cannot reach them."""

    topic = "move"
    kind = "move"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._then: dict[int, Callable[[Ref | None], None]] = {}

    def bring(self, ref: Ref, consumer: Topic, then: Callable[[Ref | None], None]) -> None:
        """Call ``then`` with an address that the consumer reaches, now or after a move; with None if that failed.

        Whoever calls holds ``ref`` until ``then`` is called.
        """
        destination = self.state.destinations[consumer]
        if ref.data is not None or ref.store.kind in destination.reaches:
            then(ref)
            return
        task_id = self.state.new_task_id()
        self._then[task_id] = then
        self.state.ledger.add_task(task_id, self.kind, self.destination.executor)
        self.send(MoveSpec(task_id=task_id, attempt=1, source=ref, store=destination.store))

    def succeeded(self, spec: MoveSpec, result: MoveResult) -> None:
        """Hand the new address on."""
        self._then.pop(spec.task_id)(result.moved)

    def given_up(self, spec: MoveSpec, failure: Failure) -> None:
        """Tell the consumer that nothing will come."""
        self._then.pop(spec.task_id)(None)

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
        return {"payload_bytes": result.moved.n_bytes, "proxied": True, "seconds": result.seconds}
