"""Where the main process hears of batches of frames, while the segments that they are of still run."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from agents.state import Receipt
from tasks.errors import StreamBroken, Unreachable
from tasks.feed import LEASE_S, batch_of
from tasks.messages import Batch, Feed, StoreSpec
from tasks.stream.events import Sent
from tasks.stream.redis_queue import RedisInlet
from tasks.stream.spec import StreamSpec
from tasks.stream.zeromq import ZmqInlet
from tasks.transport import evict

logger = logging.getLogger(__name__)

# Batches taken in by one decision.
_MOST_AT_ONCE = 256

# After an error, so long until it is tried again.
_AGAIN_AFTER_S = 1.0


class FeedInlet:
    """Hears of batches, and tells segments what became of them; to be closed.

    Bytes stay where they are: only addresses, times and counts come here.

    Parameters
    ----------
    door
        Descriptor of the socket that listens already; None where Redis carries events.
    stores
        Where each campaign's batches lie, by its number.

    Raises
    ------
    Unreachable
        When Redis does not answer.
    """

    def __init__(self, feed: Feed, door: int | None, stores: Sequence[StoreSpec]) -> None:
        options = (*feed.options, *(() if door is None else (("fd", str(door)),)))
        spec = StreamSpec(feed.namespace, feed.events, options, ahead=feed.ahead, lease_s=LEASE_S)
        self._stores = tuple(stores)
        self._inlet = RedisInlet(spec, None) if feed.events == "redis" else ZmqInlet(spec, None)

    def hear(self, within_s: float) -> Mapping[int, list[Batch]]:
        """Return the batches that came, of each campaign, by its number; none if none came in time."""
        heard: defaultdict[int, list[Batch]] = defaultdict(list)
        try:
            for n_heard in range(_MOST_AT_ONCE):
                # The first is waited for; what is there with it is taken along.
                got = self._inlet.receive(within_s if n_heard == 0 else 0.001)
                if got is None:
                    break
                self._sort(got[0], heard)
        except (StreamBroken, Unreachable) as error:
            logger.warning("batches of running segments cannot be heard of: %s", error)
            time.sleep(_AGAIN_AFTER_S)
        return heard

    def tell(self, receipts: Iterable[Receipt]) -> None:
        """Tell segments what became of their batches; where that cannot be told, they go on by themselves."""
        try:
            for receipt in receipts:
                if receipt.taken is None:
                    self._inlet.stop(receipt.stream)
                else:
                    self._inlet.acknowledge(receipt.stream, receipt.taken)
        except Unreachable as error:
            logger.warning("running segments cannot be told what became of their batches: %s", error)

    def close(self) -> None:
        """Hear no more, and remove what came and was not heard; nobody who sends is left."""
        while heard := self.hear(0.001):
            for batch in (batch for batches in heard.values() for batch in batches):
                with suppress(Unreachable):  # with the store all that lay in it is gone
                    evict(batch.points)
        self._inlet.close("over")

    def _sort(self, message: object, heard: defaultdict[int, list[Batch]]) -> None:
        if not isinstance(message, Sent):
            return
        campaign = message.info.get("campaign")
        if isinstance(campaign, int) and 0 <= campaign < len(self._stores):
            batch = batch_of(message, self._stores[campaign])
            if batch is not None:
                heard[campaign].append(batch)
