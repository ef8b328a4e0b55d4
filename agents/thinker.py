"""Colmena's Thinker: receives, lets the agents decide, and sends. It never touches coordinates."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from colmena.models import Result
from colmena.thinker import BaseThinker, agent, result_processor
from redis import RedisError

from agents.queues import Queues
from agents.results import outcomes_of
from agents.state import Outbox, Send, bundles
from agents.steering import Steering
from campaign.display import tell
from campaign.faults import reach
from campaign.trace import Traces
from tasks.files import discard, publish
from tasks.messages import Topic
from tasks.transport import evict

_TICK_S = 0.25


class CampaignThinker(BaseThinker):
    """One thread per topic and a clock; all they share is the steering's state and its lock."""

    def __init__(self, queues: Queues, steering: Steering, traces: Traces, run_dir: Path) -> None:
        super().__init__(queues, daemon=True, logger_name="colmena.thinker")
        self.steering = steering
        self._traces = traces
        self._run_dir = run_dir

    @agent(startup=True)
    def begin(self) -> None:
        """Send the first tasks."""
        self._guarded(lambda: self.act(self.steering.begin()))

    @agent
    def keep_time(self) -> None:
        """Mind deadlines and limits until the campaign is over."""
        while not self.done.wait(_TICK_S):
            self._guarded(lambda: self.act(self.steering.keep_time()))
            if self.steering.finished:
                return

    @result_processor(topic="equilibrate")
    def state_equilibrated(self, result: Result) -> None:
        """Take an equilibrated basis state in."""
        self._take("equilibrate", result)

    @result_processor(topic="simulate")
    def segment_done(self, result: Result) -> None:
        """Take a segment in and keep its slot busy."""
        self._take("simulate", result)

    @result_processor(topic="infer")
    def frames_embedded(self, result: Result) -> None:
        """Take new candidates in."""
        self._take("infer", result)

    @result_processor(topic="train")
    def model_trained(self, result: Result) -> None:
        """Take a new model version in."""
        self._take("train", result)

    @result_processor(topic="move")
    def data_moved(self, result: Result) -> None:
        """Hand data on that now lie where their consumer reaches them."""
        self._take("move", result)

    @result_processor(topic="gather")
    def node_gathered(self, result: Result) -> None:
        """Take in what was gathered on a node."""
        self._take("gather", result)

    @result_processor(topic="hook")
    def hook_done(self, result: Result) -> None:
        """Keep what a hook of the user's returned."""
        self._take("hook", result)

    def stop(self, reason: str) -> None:
        """Send nothing more; called from outside."""
        try:
            self.act(self.steering.stop(reason))
        except (sqlite3.Error, OSError, RedisError) as error:
            self.steering.state.fail(f"the Thinker could not be stopped in order: {error}")

    def pause(self, reason: str | None) -> None:
        """Send nothing for the time being; None: go on. Called from outside."""
        self._guarded(lambda: self.act(self.steering.pause(reason)))

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
                publish(self._run_dir, file)
            for topic, line in outbox.records:
                self._traces.write(topic, line)
                reach("after-trace")
            for note in outbox.notes:
                tell(note)
            self._tidy(outbox)
        self._send(hooks)
        return segment_sent

    def _send(self, outgoing: Iterable[Send]) -> float | None:
        segment_sent = None
        for sends in bundles(outgoing):
            topic, method = sends[0].topic, sends[0].method
            info = {"bundle": [send.info for send in sends]}
            self.queues.send_inputs([send.spec for send in sends], method=method, topic=topic, task_info=info)
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
            discard(self._run_dir, file)
        for name in outbox.removals:
            (self._run_dir / name).unlink(missing_ok=True)

    def _take(self, topic: Topic, result: Result) -> None:
        began = time.monotonic()

        def decide() -> None:
            sent = self.act(self.steering.handle(topic, *outcomes_of(result)))
            if topic == "simulate" and sent is not None:
                self.steering.note_decision(1000 * (sent - began))

        self._guarded(decide)

    def _guarded(self, step: Callable[[], object]) -> None:
        """Run a step; an error in it ends the campaign with its reason instead of silencing one agent."""
        try:
            step()
        except Exception as error:
            self.steering.state.fail(f"the Thinker could not go on: {type(error).__name__}: {error}")
            raise
