"""The two ends of a stream."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from tasks.errors import Damaged, StreamBroken, Unreachable
from tasks.stream.bulk import Bulk, InDirectory, InMessage, checksum, drop_quietly, is_whole
from tasks.stream.events import Beat, Data, Info, Sent
from tasks.stream.redis_queue import RedisInlet, RedisOutlet
from tasks.stream.spec import StreamSpec
from tasks.stream.zeromq import ZmqInlet, ZmqOutlet
from tasks.transport import pack, unpack


@dataclass(frozen=True, slots=True)
class Put:
    """What became of one item at its producer.

    Attributes
    ----------
    blocked_s
        How long the producer waited for the consumer to have room.
    handed_s
        How long it took to put the bytes and tell.
    """

    number: int
    n_bytes: int
    blocked_s: float
    handed_s: float


@dataclass(frozen=True, slots=True)
class Item:
    """Arrays that came, known to be whole.

    Attributes
    ----------
    path
        The file in the consumer's directory, if it has one.
    waited_s
        How long the consumer was blocked until this item was told of.
    moved_s
        How long it took to fetch the bytes, check them, and write them where they land. With bytes in messages, their
        way is in ``waited_s``: it ends when the message is there.
    """

    stream: int
    number: int
    info: Info
    data: Data = field(repr=False)
    path: Path | None
    waited_s: float
    moved_s: float

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays, as views of the bytes that came.

        Raises
        ------
        Damaged
            When the bytes are none that `tasks.transport.pack` makes.
        """
        return unpack(self.data)


class Producer:
    """Puts items into a stream; to be used in a ``with`` statement, which closes it.

    Parameters
    ----------
    stream
        Its number among those of the consumer.

    Raises
    ------
    Unreachable
        When Redis does not answer.
    """

    def __init__(self, spec: StreamSpec, stream: int, bulk: Bulk) -> None:
        self._spec, self._stream, self._bulk = spec, stream, bulk
        self._session = os.urandom(8).hex()
        self._held: list[Sent] = []  # told of and not known to be taken; their bytes are ours to remove
        self._n_sent = 0
        self._is_closed = False
        _check_carrier(spec, bulk)
        outlet = RedisOutlet if spec.events == "redis" else ZmqOutlet
        self._outlet: RedisOutlet | ZmqOutlet = outlet(spec, stream, self._session)

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def put(self, arrays: Mapping[str, np.ndarray], info: Info | None = None) -> Put:
        """Put arrays into the stream, once the consumer is less than ``ahead`` items behind.

        Parameters
        ----------
        info
            Scalars that travel with the event.

        Raises
        ------
        StreamBroken
            When the consumer is gone, or makes no room within ``wait_s``.
        Unreachable
            When Redis or the store does not answer.
        """
        return self.put_packed(pack(arrays), info)

    def put_packed(self, data: bytes, info: Info | None = None) -> Put:
        """Put the bytes of arrays that are packed already; as `put`."""
        began = time.perf_counter()
        self._outlet.wait_taken(self._n_sent - self._spec.ahead + 1, self._spec.wait_s)
        self._let_go()
        free = time.perf_counter()
        key, carried = self._bulk.put(self._stream, self._n_sent, data)
        sent = Sent(self._stream, self._session, self._n_sent, len(data), checksum(data), key, dict(info or {}))
        self._held.append(sent)
        self._outlet.send(sent, carried)
        self._n_sent += 1
        return Put(sent.number, len(data), free - began, time.perf_counter() - free)

    def close(self) -> None:
        """Tell that this was all, and wait until the consumer has taken it.

        Raises
        ------
        StreamBroken
            When the consumer is gone, or does not take it within ``wait_s``; nothing is left in the store then.
        """
        if self._is_closed:
            return
        try:
            self._outlet.finish(Beat(self._stream, self._session, self._n_sent, "over"))
            self._outlet.wait_taken(self._n_sent, self._spec.wait_s)
        except BaseException:
            self.abandon()
            raise
        self._is_closed = True
        self._outlet.close()

    def abandon(self) -> None:
        """Tell the consumer, if it can be told, that no more will come; remove what it did not take."""
        if self._is_closed:
            return
        self._is_closed = True
        self._let_go()
        try:
            self._outlet.finish(Beat(self._stream, self._session, self._n_sent, "broken"))
        except Unreachable:
            pass  # whatever else raised says it already
        finally:
            self._outlet.close()
            for sent in self._held:
                drop_quietly(self._bulk, sent)

    def _let_go(self) -> None:
        """Forget what was taken: the consumer removed it."""
        self._held = [sent for sent in self._held if sent.number >= self._outlet.taken]


class Consumer:
    """Takes the items of one producer or several, in the order in which they come.

    To be used in a ``with`` statement, which closes it. Iterating blocks, without polling, until there is an item,
    and ends when every producer said that this was all.

    Parameters
    ----------
    streams
        Numbers of the producers.
    directory
        Where items are moved to, ``group{stream}/frame{number:06d}.safetensors``; None to leave them where they are.

    Attributes
    ----------
    taken, lost, damaged
        How many items came whole; never came, although later ones did or the producer sent them; came, and were not
        what their producer wrote.

    Raises
    ------
    BadInput
        When the address cannot be listened at.
    Unreachable
        When Redis does not answer.
    """

    def __init__(self, spec: StreamSpec, streams: Sequence[int], bulk: Bulk, directory: Path | None = None) -> None:
        self._spec, self._bulk = spec, bulk
        self.taken = self.lost = self.damaged = 0
        self._next = dict.fromkeys(streams, 0)
        self._open = set(streams)
        self._broken: dict[int, str] = {}
        self._is_closed = False
        _check_carrier(spec, bulk)
        inlet = RedisInlet if spec.events == "redis" else ZmqInlet
        self._inlet: RedisInlet | ZmqInlet = inlet(spec, streams)
        self._landing = None if directory is None else InDirectory(directory)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def strangers(self) -> int:
        """How many messages were of nobody who knows the stream."""
        return self._inlet.strangers

    def __iter__(self) -> Iterator[Item]:
        """Yield items.

        Raises
        ------
        StreamBroken
            When a producer is gone, once all others have ended; or when nothing comes within ``wait_s``.
        Unreachable
            When Redis or the store does not answer.
        """
        waited_s = 0.0
        while self._open:
            began = time.perf_counter()
            got = self._inlet.receive(self._spec.wait_s)
            waited_s += time.perf_counter() - began
            if got is None:
                raise StreamBroken(self._silence())
            message, carried = got
            if isinstance(message, Beat):
                self._end(message)
                continue
            item = self._take(message, carried, waited_s)
            if item is not None:
                yield item
                waited_s = 0.0
        if self._broken:
            raise StreamBroken("; ".join(self._broken.values()))

    def close(self) -> None:
        """Close the stream; producers that still send are told."""
        if self._is_closed:
            return
        self._is_closed = True
        self._inlet.close("broken" if self._open or self._broken else "over")

    def _take(self, sent: Sent, carried: Data | None, waited_s: float) -> Item | None:
        """Return an item whose bytes are here and whole, or None."""
        if sent.stream not in self._open or sent.number < self._next[sent.stream]:
            return None  # again, or after its end
        self._advance(sent.stream, sent.number)
        began = time.perf_counter()
        found = self._fetch(sent, carried)
        moved_s = time.perf_counter() - began
        self._next[sent.stream] = sent.number + 1
        drop_quietly(self._bulk, sent)
        self._inlet.acknowledge(sent.stream, sent.number + 1)
        if found is None:
            self.damaged += 1
            return None
        self.taken += 1
        data, path = found
        return Item(sent.stream, sent.number, sent.info, data, path, waited_s, moved_s)

    def _fetch(self, sent: Sent, carried: Data | None) -> tuple[Data, Path | None] | None:
        """Return an item's bytes and their place; None where they are not whole."""
        try:
            data = self._bulk.get(sent, carried)
        except Damaged:
            return None
        if not is_whole(sent, data):
            return None
        if self._landing is None:
            return data, None
        self._landing.put(sent.stream, sent.number, data)
        return data, self._landing.path(sent.stream, sent.number)

    def _advance(self, stream: int, number: int) -> None:
        """Count what should have come before this number."""
        self.lost += max(0, number - self._next[stream])
        self._next[stream] = max(number, self._next[stream])

    def _end(self, beat: Beat) -> None:
        if beat.stream not in self._open:
            return
        self._open.discard(beat.stream)
        # One that is gone said how much it had sent only as far as its last sign of life.
        before = self._next[beat.stream]
        self._advance(beat.stream, beat.sent)
        if self._next[beat.stream] > before:
            self._inlet.acknowledge(beat.stream, self._next[beat.stream])
        if beat.state != "over":
            how = "gave up" if beat.state == "broken" else f"gave no sign of life for {self._spec.lease_s:g} s"
            self._broken[beat.stream] = (
                f"the producer of stream {beat.stream} in namespace {self._spec.namespace} {how} after "
                f"{self._next[beat.stream]} items: look at what it says itself, and start both again"
            )

    def _silence(self) -> str:
        streams = ", ".join(map(str, sorted(self._open)))
        return (
            f"nothing came of stream {streams} in namespace {self._spec.namespace} within {self._spec.wait_s:g} s: "
            "start its producer, or wait longer for it"
        )


def _check_carrier(spec: StreamSpec, bulk: Bulk) -> None:
    if spec.events != "zmq" and isinstance(bulk, InMessage):
        raise ValueError("a Redis queue carries no bytes beside its events: put them in a store")
