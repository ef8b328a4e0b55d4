"""The gather topic: trajectories on the nodes' scratch become archives in the run directory."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from agents.attempts import Failure, Verdict
from agents.simulate import SimulateAgent
from agents.state import CampaignState, Destination
from agents.topic import Outcome, TopicAgent
from tasks.messages import Archive, GatherResult, GatherSpec, Ref

logger = logging.getLogger(__name__)


class GatherAgent(TopicAgent[GatherSpec, GatherResult]):
    """Records the archives that workers write on their way, and has the rest gathered at the end.

    What is not in an archive then lies on a node that is gone: its segments run again, for their files alone.
    Nothing to do where the campaign keeps nothing on scratch.

    Parameters
    ----------
    simulate
        Whose segments are complete once they are gathered.

    Attributes
    ----------
    flushed
        Whether all that is computed was asked for.
    """

    topic = "gather"
    kind = "gather"
    spec_type = GatherSpec

    def __init__(self, state: CampaignState, simulate: SimulateAgent) -> None:
        super().__init__(state)
        self._simulate = simulate
        self.flushed = False
        self._leaving = False
        self._rounds = 0
        self._n_flushes = 0
        self._answered: set[str] = set()

    @property
    def settled(self) -> bool:
        """Whether nothing more can be gathered, or need be."""
        return not self._simulate.computed or (self.flushed and self.state.ending is not None)

    def take_reported(self) -> None:
        """Record what workers gathered after their segments, as tasks that nobody had to send."""
        while self._simulate.reported:
            self._record(self._simulate.reported.popleft())
        if self._simulate.newly_computed:
            self.flushed = self._simulate.newly_computed = False

    def take_found(self) -> None:
        """Record archives of which no report came."""
        for archive in self.state.archives():
            logger.info("%s was found in the run directory", archive.file.path)
            self._record(archive)

    def settle(self, *, over: bool) -> None:
        """Have everything gathered when the campaign ends, and run again what is on no node any more.

        Parameters
        ----------
        over
            Whether no segment is to come.
        """
        leaving = self.state.ending is not None
        if self.busy or not self._simulate.computed or self.state.failure is not None:
            return
        if self.state.paused is not None and not leaving:
            return
        if (over and not self.flushed) or (leaving and not self._leaving):
            self._leaving = leaving
            self._answered.clear()
            self._n_flushes = 0
            self._flush()
        elif over and not leaving:
            self._run_again()

    def run_again_of(self, nodes: Iterable[str]) -> None:
        """Run again what was computed on nodes that have nothing left to gather."""
        emptied = frozenset(nodes)
        self._run_lost([segment for segment, node in self.state.ledger.computed_on().items() if node in emptied])

    def _flush(self) -> None:
        """Send as many tasks as there are workers, so that every node gets some; more with each try."""
        self._n_flushes += 1
        for place in self.state.pool.here or self.state.pool.places:
            assert place.scratch is not None  # as there is something on it
            assert place.run_dir is not None
            for _ in range(self._n_flushes * place.slots):
                spec = GatherSpec(self.state.new_task_id(), 1, place.scratch, place.run_dir)
                self.begin_task(spec, place=place.of(self.topic))
        self.flushed = True

    def _run_again(self) -> None:
        self.take_found()
        left = sorted(self._simulate.computed)
        if not left:
            return
        # Parsl gives a task to any node: one that did not answer may only have got none.
        where = self.state.ledger.computed_on()
        unheard = {where[segment] for segment in left} - self._answered
        if unheard and self._n_flushes < self.state.settings.max_attempts:
            logger.info("%s did not answer yet: gathering once more", ", ".join(sorted(unheard)))
            self._flush()
            return
        self._rounds += 1
        if self._rounds > self.state.settings.max_attempts:
            self.state.fail(
                f"{len(left)} segments are computed and could not be gathered, segment {left[0]} first: see that "
                "nodes keep --scratch as long as the campaign runs, and resume"
            )
            return
        self._run_lost(left)

    def _run_lost(self, segments: list[int]) -> None:
        if segments:
            told = f"{len(segments)} segments were lost with the scratch of their node: they run again"
            logger.warning("%s", told)
            self.state.outbox.notes.append(told)
            self._simulate.run_again(segments, "its node was lost before its trajectory was gathered")

    def _record(self, archive: Archive) -> None:
        """Record an archive with a task of its own, unless it is known."""
        if self.state.ledger.knows_archive(archive.file.path):
            return
        task, destination = self.state.new_task_id(), self.destination
        self.state.counts.n_sent[self.topic] += 1
        self._complete(archive, self.state.ledger.add_found(task, destination.executor, destination.site, archive))

    def _complete(self, archive: Archive, segments: list[int]) -> None:
        for segment_id in segments:
            self._simulate.completed(segment_id)
        logger.info("%s: %d segments are complete, from %s", archive.file.path, len(segments), archive.node)

    def succeeded(self, spec: GatherSpec, result: GatherResult) -> None:
        """Let what was gathered be complete."""
        self._answered.add(result.node)
        if result.archive is not None and not self.state.ledger.knows_archive(result.archive.file.path):
            self._complete(result.archive, self.state.ledger.add_archive(spec.task_id, result.archive))

    def given_up(self, spec: GatherSpec, failure: Failure, verdict: Verdict) -> None:
        """End the campaign where archives cannot be written; segments that ran again could not be gathered either."""
        if verdict != "again":
            self.state.fail(f"what was computed could not be gathered: {failure.message}")

    def inputs(self, spec: GatherSpec) -> Iterable[Ref]:
        """Return nothing: it reads files."""
        return ()

    def outputs(self, result: GatherResult) -> Iterable[Ref]:
        """Return nothing: it writes a file."""
        return ()

    def info(self, spec: GatherSpec) -> dict[str, Any]:
        """Return its number."""
        return {"task_id": spec.task_id}

    def findings(self, result: GatherResult) -> dict[str, Any]:
        """Return what was gathered where."""
        archive = result.archive
        segments = [] if archive is None else [member.segment_id for member in archive.members]
        path = None if archive is None else archive.file.path
        return {"node": result.node, "archive": path, "segments": segments, "seconds": result.seconds}

    def _count_compute(self, outcome: Outcome, place: Destination) -> None:
        """Leave it out of utilisation, which is that of segments and learning."""
