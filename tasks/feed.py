"""Batches of a running segment on their way to the learning site (``--stream``), and the word that it may end.

What the model sees of the frames goes into the topic's store, and an event through a stream (`tasks.stream`) to the
submit host, which has it embedded. The segment goes on meanwhile; it is never more than some batches ahead.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Final

import numpy as np

from tasks.errors import Damaged, StreamBroken, Unreachable
from tasks.messages import Batch, Fed, Feed, Ref, SegmentSpec, StoreSpec, WhenSlow
from tasks.stream.bulk import ref_in
from tasks.stream.events import Beat, Sent
from tasks.stream.redis_queue import RedisOutlet
from tasks.stream.spec import LOOPBACK, StreamSpec
from tasks.stream.zeromq import ZmqOutlet
from tasks.transport import evict, port_here, ship

# Silence after which the submit host is gone for a segment, which then goes on by itself.
LEASE_S: Final = 10.0

# A segment that waits for room (``--stream-when-slow wait``) waits no longer.
WAIT_S: Final = 300.0

# Attempts at a segment have streams of their own.
_MOST_ATTEMPTS: Final = 4096


class Feeder:
    """Sends the batches of one attempt at a segment.

    Attributes
    ----------
    stopped
        Whether the campaign has seen enough of it, and it may end with the frames that it has.
    """

    def __init__(self, spec: SegmentSpec, feed: Feed, when_slow: WhenSlow, *, may_stop: bool) -> None:
        self._spec, self._feed, self._when_slow, self._may_stop = spec, feed, when_slow, may_stop
        self._stream = spec.segment_id * _MOST_ATTEMPTS + min(spec.attempt, _MOST_ATTEMPTS - 1)
        self._session = os.urandom(8).hex()
        self._sent: list[Ref] = []
        self._n_dropped = 0
        self._blocked_s = 0.0
        self._error: str | None = None
        self._outlet: ZmqOutlet | RedisOutlet | None = None

    @property
    def stopped(self) -> bool:
        """Whether the segment ends with the frames that it has."""
        return self._may_stop and self._outlet is not None and self._outlet.enough

    def send(self, first: int, points: np.ndarray) -> None:
        """Send a batch, unless there is no room; one that cannot be sent costs the segment nothing but that.

        Parameters
        ----------
        first
            Number of its first frame in the segment, from 0.
        points : ndarray of shape (n_frames, n_points, 3), float32
            What the model sees of the frames, in nm.
        """
        if self._error is not None:
            self._n_dropped += 1
            return
        try:
            if self._outlet is None:
                self._outlet = self._open()
            self._outlet.look()
            if self.stopped:
                return
            if not self._has_room(self._outlet):
                self._n_dropped += 1
                return
            self._tell(self._outlet, first, points)
        except (StreamBroken, Unreachable) as error:
            self._n_dropped += 1
            self._error = str(error)

    def leave(self) -> None:
        """Say that this was all; nobody waits until it was looked at, for the segment's result has it all."""
        if self._outlet is None:
            return
        try:
            self._outlet.finish(Beat(self._stream, self._session, len(self._sent), "over"))
        except Unreachable as error:
            self._error = self._error or str(error)
        finally:
            self._outlet.close()
            self._take_back(self._outlet)

    def fed(self) -> Fed:
        """Return what came of it."""
        return Fed(len(self._sent), self._n_dropped, self._blocked_s, self.stopped, self._error)

    def _open(self) -> ZmqOutlet | RedisOutlet:
        outlet = RedisOutlet if self._feed.events == "redis" else ZmqOutlet
        return outlet(stream_spec(self._feed), self._stream, self._session)

    def _has_room(self, outlet: ZmqOutlet | RedisOutlet) -> bool:
        """Return whether another batch may be on its way, perhaps after a wait."""
        least = len(self._sent) - self._feed.ahead + 1
        if outlet.taken >= least:
            return True
        if self._when_slow == "drop":
            return False
        began = time.perf_counter()
        try:
            outlet.wait_taken(least, WAIT_S)
        finally:
            self._blocked_s += time.perf_counter() - began
        return True

    def _take_back(self, outlet: ZmqOutlet | RedisOutlet) -> None:
        """Remove what nobody heard of, or will look at."""
        if outlet.met and self._error is None:
            return
        for ref in self._sent[outlet.taken :]:
            with suppress(Unreachable):
                evict(ref)

    def _tell(self, outlet: ZmqOutlet | RedisOutlet, first: int, points: np.ndarray) -> None:
        made = time.time()
        ref = ship({"points": points}, self._spec.store)
        info = {
            "campaign": self._feed.campaign,
            "segment_id": self._spec.segment_id,
            "attempt": self._spec.attempt,
            "first": first,
            "n_frames": len(points),
            "made": made,
        }
        outlet.send(Sent(self._stream, self._session, len(self._sent), ref.n_bytes, "", ref.key, info), None)
        self._sent.append(ref)


def stream_spec(feed: Feed) -> StreamSpec:
    """Return where the submit host listens, as this host has it."""
    options = dict(feed.options)
    if feed.events == "zmq" and options.get("host", LOOPBACK) == LOOPBACK:
        options["port"] = str(port_here(options["port"]))
    return StreamSpec(
        feed.namespace, feed.events, tuple(options.items()), ahead=feed.ahead, lease_s=LEASE_S, wait_s=WAIT_S
    )


def batch_of(sent: Sent, store: StoreSpec) -> Batch | None:
    """Return the batch that an event tells of; None where it tells of none.

    Parameters
    ----------
    store
        Where batches lie: no event can name another.
    """
    info = sent.info
    try:
        segment_id, attempt, first, n_frames = (
            int(info[name]) for name in ("segment_id", "attempt", "first", "n_frames")
        )
        made, points = float(info["made"]), ref_in(store, sent)
    except (KeyError, ValueError, TypeError, OverflowError, Damaged):
        return None
    return Batch(segment_id, attempt, sent.stream, sent.number, first, n_frames, made, points)
