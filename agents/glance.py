"""The glance topic: looks at batches of segments that still run, and ends those that have nothing new to say."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from agents.attempts import Failure, Verdict
from agents.state import CampaignState, Receipt
from agents.topic import TopicAgent
from campaign.ledger import OpenTask
from policies.early import PATIENCE, has_nothing_new
from tasks.messages import Batch, Cargo, GlanceResult, GlanceSpec, Ref

# Batches in one glance: what piles up while a model is trained is looked at in portions.
MAX_BATCHES = 64


class GlanceAgent(TopicAgent[GlanceSpec, GlanceResult]):
    """One short task at a time over the batches that came since the last.

    A batch is of use only while its segment runs. So nothing of this outlives the process, no attempt is made twice,
    and what fails costs the campaign nothing.

    Parameters
    ----------
    attempt_of
        Returns the attempt of a segment that is out; None where none is.
    bring
        Brings data where inference reaches them (`MoveAgent.bring`).
    """

    topic = "glance"
    kind = "glance"
    spec_type = GlanceSpec

    def __init__(
        self,
        state: CampaignState,
        attempt_of: Callable[[int], int | None],
        bring: Callable[[Cargo, Ref], None],
    ) -> None:
        super().__init__(state)
        self._attempt_of = attempt_of
        self._bring = bring
        self._coming: dict[int, Batch] = {}
        self._waiting: deque[tuple[Batch, Ref]] = deque()
        self._rarity: defaultdict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=PATIENCE))
        self._n_heard = 0

    @property
    def tries_again(self) -> bool:
        """Never."""
        return False

    # Batches ----------------------------------------------------------------------------------------------------

    def hear(self, batches: Sequence[Batch]) -> None:
        """Take in batches that came; those that nobody can look at are let go at once."""
        for batch in batches:
            self.state.hold(batch.points, ("batch", batch.stream, batch.number))
            # Before a first inference there is nothing to compare with.
            if self.state.reference is None or not self._runs(batch) or self.state.quiet:
                self._let_go(batch, batch.points)
                continue
            number, self._n_heard = self._n_heard, self._n_heard + 1
            self._coming[number] = batch
            self._bring(("batch", number), batch.points)

    def reached(self, number: int, ref: Ref, reachable: Ref | None) -> None:
        """Take a batch where inference reaches it; None where it did not get there."""
        batch = self._coming.pop(number)
        if reachable is None:
            self._let_go(batch, ref)
            return
        if reachable != ref:
            self.state.hold(reachable, ("batch", batch.stream, batch.number))
            self.state.release([ref], ("batch", batch.stream, batch.number))
        self._waiting.append((batch, reachable))

    def look(self) -> None:
        """Have what waits looked at; once nothing is sent any more, no segment waits for that in vain."""
        while self.state.quiet and self._waiting:
            self._let_go(*self._waiting.popleft())
        if self.busy or not self._waiting:
            return
        for segment_id, attempt in [each for each in self._rarity if self._attempt_of(each[0]) != each[1]]:
            del self._rarity[segment_id, attempt]
        ready: list[tuple[Batch, Ref]] = []
        while self._waiting and len(ready) < MAX_BATCHES:
            batch, points = self._waiting.popleft()
            if self._runs(batch):
                ready.append((batch, points))
            else:
                self._let_go(batch, points)
        if ready and self.state.reference is not None:
            self._look_at(ready, self.state.reference)

    def _look_at(self, ready: Sequence[tuple[Batch, Ref]], reference: Ref) -> None:
        settings, state = self.state.settings, self.state
        spec = GlanceSpec(
            task_id=state.new_task_id(),
            attempt=1,
            batches=tuple(_at(batch, points) for batch, points in ready),
            reference=reference,
            reference_number=state.counts.inferences,
            model=state.model,
            model_version=state.model_version,
            novelty=settings.novelty,
            neighbours=settings.neighbours,
            seed=settings.seed,
            store=self.destination.store,
        )
        self.begin_task(spec)
        for batch, points in ready:
            state.release([points], ("batch", batch.stream, batch.number))

    def _runs(self, batch: Batch) -> bool:
        return self._attempt_of(batch.segment_id) == batch.attempt

    def _let_go(self, batch: Batch, points: Ref) -> None:
        self.state.release([points], ("batch", batch.stream, batch.number))
        self._acknowledge(batch)

    def _acknowledge(self, batch: Batch) -> None:
        self.state.outbox.receipts.append(Receipt(batch.stream, batch.number + 1))

    # What comes back --------------------------------------------------------------------------------------------

    def succeeded(self, spec: GlanceSpec, result: GlanceResult) -> None:
        """Tell segments that their batches were taken, and those with nothing new that they may end."""
        self.state.counts.fed["embedded"] += len(spec.batches)
        below = self.state.settings.stop_below
        for batch, rarity in zip(spec.batches, result.rarity, strict=True):
            self._acknowledge(batch)
            if not self._runs(batch):
                continue
            seen = self._rarity[batch.segment_id, batch.attempt]
            seen.append(rarity)
            if below is not None and self._has_better() and has_nothing_new(tuple(seen), below):
                self.state.outbox.receipts.append(Receipt(batch.stream))

    def _has_better(self) -> bool:
        """Whether there is a start that inference found."""
        return self.state.candidates is not None and len(self.state.candidates.ids) > 0

    def given_up(self, spec: GlanceSpec, failure: Failure, verdict: Verdict) -> None:
        """Go on without; whatever follows is looked at anew."""
        for batch in spec.batches:
            self._acknowledge(batch)
        if verdict == "again":
            self.state.ledger.set_state(spec.task_id, "fizzled")
            self.state.release(self.inputs(spec), ("task", spec.task_id))

    def take_up(self, task: OpenTask) -> None:
        """Leave what an earlier process asked for: its segments run anew."""
        self.state.ledger.set_state(task.id, "fizzled")

    def inputs(self, spec: GlanceSpec) -> Iterable[Ref]:
        """Return the batches, the reference set and the model."""
        model = () if spec.model is None else (spec.model,)
        return (*(batch.points for batch in spec.batches), spec.reference, *model)

    def outputs(self, result: GlanceResult) -> Iterable[Ref]:
        """Return nothing: numbers travel in the message."""
        return ()

    def info(self, spec: GlanceSpec) -> dict[str, Any]:
        """Return which batches are looked at, and by which model."""
        return {
            "task_id": spec.task_id,
            "batches": [[batch.segment_id, batch.first, batch.n_frames] for batch in spec.batches],
            "made": [batch.made for batch in spec.batches],
            "model_version": spec.model_version,
            "reference_number": spec.reference_number,
        }

    def findings(self, result: GlanceResult) -> dict[str, Any]:
        """Return how novel they are, and timings."""
        return {
            "n_frames": result.n_frames,
            "rarity": list(result.rarity),
            "novelty": list(result.novelty),
            "embedded": result.embedded,
            "payload_bytes": 0,
            "proxied": False,
            "seconds": result.seconds,
        }


def _at(batch: Batch, points: Ref) -> Batch:
    return batch if batch.points == points else replace(batch, points=points)
