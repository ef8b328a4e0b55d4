"""One campaign's part of the Thinker: it lets the steering decide, and does what was decided."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from colmena.models import Result

from agents.queues import Queues
from agents.results import outcomes_of
from agents.state import CampaignState, Outbox, Send, bundles
from agents.steering import Steering
from campaign.display import tell
from campaign.faults import reach
from campaign.rundir import RunDirectory
from campaign.trace_files import Traces
from tasks.files import discard, publish
from tasks.messages import Batch, Topic
from tasks.transport import evict

if TYPE_CHECKING:
    from agents.chronicle import Chronicle
    from agents.feed import FeedInlet

logger = logging.getLogger(__name__)


class Actor:
    """Sends, publishes files, writes traces and evicts, after the ledger has committed; never touches coordinates.

    Parameters
    ----------
    number
        Of the campaign among those of this process; its tasks carry it.
    name
        What its messages to the user begin with; empty for a lone campaign.

    Attributes
    ----------
    dismissed
        Whether nobody waits any more for what is still out.
    chronicle
        What tells of weighted ensembles; None for other campaigns.
    feed
        Where running segments are told what became of their batches; None where they send none.
    ended
        Whether the campaign was over when somebody last looked; told without its lock.
    """

    def __init__(
        self, number: int, name: str, queues: Queues, steering: Steering, traces: Traces, run_dir: RunDirectory
    ) -> None:
        self.number = number
        self.steering = steering
        self.dismissed = False
        self.ended = False
        self._name = name
        self._queues = queues
        self._traces = traces
        self._run_dir = run_dir
        self.chronicle: Chronicle | None = None
        self.feed: FeedInlet | None = None

    @property
    def state(self) -> CampaignState:
        """The campaign's state."""
        return self.steering.state

    @property
    def over(self) -> bool:
        """Whether the campaign has ended, well or not."""
        self.ended = self.ended or self.dismissed or self.steering.finished
        return self.ended

    def begin(self) -> None:
        """Send the first tasks."""
        self._guarded(lambda: self.act(self.steering.begin()))

    def keep_time(self) -> None:
        """Mind deadlines and limits."""
        self._guarded(lambda: self.act(self.steering.keep_time()))

    def take(self, topic: Topic, result: Result) -> None:
        """Let a result have its consequences; where nobody waits for it, a later process sees to its task."""
        began = time.monotonic()

        def decide() -> None:
            sent = self.act(self.steering.handle(topic, *outcomes_of(result)))
            if topic == "simulate" and sent is not None:
                self.steering.note_decision(1000 * (sent - began))

        if self.state.failure is None and not self.dismissed:
            self._guarded(decide)

    def hear(self, batches: Sequence[Batch]) -> None:
        """Take in batches of segments that run."""
        if self.state.failure is None and not self.dismissed:
            self._guarded(lambda: self.act(self.steering.hear(batches)))

    def stop(self, reason: str) -> None:
        """Send nothing more."""
        self._guarded(lambda: self.act(self.steering.stop(reason)))

    def pause(self, reason: str | None) -> None:
        """Send nothing for the time being; None: go on."""
        self._guarded(lambda: self.act(self.steering.pause(reason)))

    def tell(self, text: str) -> None:
        """Tell the user."""
        tell(f"{self._name}: {text}" if self._name else text)

    def act(self, outbox: Outbox) -> float | None:
        """Do what was decided, slots first; return when the first segment was sent (monotonic), if one was.

        Hooks come last: they read the files that are published here.
        """
        hooks = [send for send in outbox.sends if send.topic == "hook"]
        try:
            segment_sent = self._send(send for send in outbox.sends if send.topic != "hook")
        finally:
            # The ledger has these results, so files and traces tell them, whatever became of the queue.
            if outbox.published:
                reach("before-publish")
            for file in outbox.published:
                publish(self._run_dir.path, file)
            for topic, line in outbox.records:
                self._traces.write(topic, line)
                reach("after-trace")
            if self.chronicle is not None:
                self._chronicle(self.chronicle, outbox)
            for note in outbox.notes:
                self.tell(note)
            if self.feed is not None:
                self.feed.tell(outbox.receipts)
            self._tidy(outbox)
        self._send(hooks)
        return segment_sent

    def _chronicle(self, chronicle: Chronicle, outbox: Outbox) -> None:
        for topic, line in outbox.records:
            if topic == "simulate":
                chronicle.log(line)
        chronicle.note(outbox.boundaries)

    def _send(self, outgoing: Iterable[Send]) -> float | None:
        segment_sent = None
        for sends in bundles(outgoing):
            topic, method = sends[0].topic, sends[0].method
            info = {"campaign": self.number, "bundle": [send.info for send in sends]}
            self._queues.send_inputs([send.spec for send in sends], method=method, topic=topic, task_info=info)
            reach("after-send")
            if topic == "simulate" and segment_sent is None:
                segment_sent = time.monotonic()
        return segment_sent

    def _tidy(self, outbox: Outbox) -> None:
        """Remove what nobody needs any more."""
        if outbox.evictions:
            reach("before-evict")
        for ref in outbox.evictions:
            evict(ref)
        for file in outbox.discarded:
            discard(self._run_dir.path, file)
        for name in outbox.removals:
            (self._run_dir.path / name).unlink(missing_ok=True)

    def _guarded(self, step: Callable[[], object]) -> None:
        """Run a step; an error in it ends this campaign with its reason, and no thread that others need."""
        with self._run_dir.in_focus():
            try:
                step()
            except Exception as error:
                logger.exception("the Thinker could not go on")
                self.state.fail(f"the Thinker could not go on: {type(error).__name__}: {error}")
