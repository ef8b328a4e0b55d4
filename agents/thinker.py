"""Colmena's Thinker: receives results, and hands each to the campaign that it is of."""

from __future__ import annotations

from collections.abc import Sequence

from colmena.models import Result
from colmena.thinker import BaseThinker, agent, result_processor

from agents.actor import Actor
from agents.feed import FeedInlet
from agents.queues import Queues
from tasks.messages import Topic

_TICK_S = 0.25


class CampaignThinker(BaseThinker):
    """One thread per topic and a clock, for one campaign or several that share their workers."""

    def __init__(self, queues: Queues, actors: Sequence[Actor], feed: FeedInlet | None = None) -> None:
        super().__init__(queues, daemon=True, logger_name="colmena.thinker")
        self.actors = tuple(actors)
        self.feed = feed

    @agent(startup=True)
    def begin(self) -> None:
        """Send the first tasks."""
        for actor in self.actors:
            actor.begin()

    @agent
    def keep_time(self) -> None:
        """Mind deadlines and limits until every campaign is over."""
        while not self.done.wait(_TICK_S):
            for actor in self.actors:
                if not actor.over:
                    actor.keep_time()
            if all(actor.over for actor in self.actors):
                return

    @agent(startup=True)  # or its end would be that of all others
    def hear_of_batches(self) -> None:
        """Take in what running segments send, until every campaign is over."""
        while self.feed is not None and not (self.done.is_set() or all(actor.over for actor in self.actors)):
            for number, batches in self.feed.hear(_TICK_S).items():
                if not self.actors[number].over:
                    self.actors[number].hear(batches)

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

    @result_processor(topic="glance")
    def batches_embedded(self, result: Result) -> None:
        """Take in how novel the batches of running segments are."""
        self._take("glance", result)

    @result_processor(topic="coordinate")
    def coordinates_computed(self, result: Result) -> None:
        """Take progress coordinates in."""
        self._take("coordinate", result)

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

    def _take(self, topic: Topic, result: Result) -> None:
        self.actors[result.task_info["campaign"]].take(topic, result)
