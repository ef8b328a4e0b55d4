"""Events over ZeroMQ: the consumer listens, producers connect and are known by their session.

Sockets are pyzmq's own: ProxyStore's shims are publishers and subscribers, which drop what comes before a subscriber.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import zmq

from tasks.errors import BadInput, StreamBroken
from tasks.stream.events import MAX_EVENT_BYTES, Beat, Data, Sent, State, Taken, decode, encode
from tasks.stream.line import Line
from tasks.stream.rendezvous import Meeting, folder_of_this_user, fresh_token, look, own_token, publish, tcp, withdraw
from tasks.stream.spec import LOOPBACK, StreamSpec

_LARGEST_MESSAGE = 2_000_000_000

# Of any, so many are listened to at once.
_MOST_STREAMS = 1024

# Beats per lease: one or two may be late on a loaded machine.
_BEATS = 4

# A producer looks so often for a consumer that has not come yet, and a last word is said so often.
_AGAIN_EVERY_S = 0.1

# An end that closes waits so long for the other to hear its last word: a connection that is closed while something of
# the other's is still unread may lose it.
_FAREWELL_S = 2.0


class ZmqOutlet:
    """A producer's end: has events sent, and knows how many were taken.

    Attributes
    ----------
    enough
        Whether the consumer has seen enough.
    """

    def __init__(self, spec: StreamSpec, stream: int, session: str) -> None:
        self._spec, self._stream, self._session = spec, stream, session
        self._changed = threading.Condition()
        self.taken = 0
        self.enough = False
        self._n_sent = 0  # those that left this process
        self._last: Beat | None = None
        self._is_heard = False  # that last one, by the consumer
        self._hears = False  # the consumer's last word
        self._consumer: str | None = None
        self._heard_at = 0.0
        self._trouble: str | None = None
        self._meeting: Meeting | None = None
        self._has_looked = False
        # Nothing is given to a connection that is not there yet: it would be lost with it.
        options = {zmq.IMMEDIATE: 1, zmq.SNDHWM: 0, zmq.RECONNECT_IVL: 100, **_alive(spec)}
        self._line: Line[tuple[Sent | Beat, Data | None]] = Line(
            zmq.DEALER, options, self._encode, self._on_message, self._on_beat
        )
        self._line.start()

    def send(self, sent: Sent, carried: Data | None) -> None:
        """Have an event sent, and with it the bytes that travel in messages."""
        encode(sent, _password(self._spec, ""))  # what cannot be sent is told here
        self._line.send((sent, carried))

    def finish(self, beat: Beat) -> None:
        """Have the last beat sent, behind all events."""
        self._last = beat
        self._line.beat()

    @property
    def met(self) -> bool:
        """Whether the consumer was heard of: before, nothing was sent."""
        return self._consumer is not None

    def look(self) -> None:
        """Learn how many were taken, without waiting.

        Raises
        ------
        StreamBroken
            When the consumer is gone, or gave up.
        """
        with self._changed:
            said = self._broken()
        if said is not None:
            raise StreamBroken(said)

    def wait_taken(self, at_least: int, within_s: float) -> None:
        """Block until the consumer took so many items.

        Raises
        ------
        StreamBroken
            When it is gone, gave up, or did not within ``within_s``.
        """
        deadline = time.monotonic() + within_s
        with self._changed:
            while not (self.taken >= at_least and (self._last is not None or not self._broken())):
                said, left_s = self._broken(), deadline - time.monotonic()
                if said is None and left_s <= 0:
                    said = self._silence(within_s)
                if said is not None:
                    raise StreamBroken(said)
                self._changed.wait(min(left_s, self._spec.lease_s / _BEATS))

    def close(self) -> None:
        """Close the connection, once a consumer that was found knows, or after some seconds."""
        deadline = time.monotonic() + min(_FAREWELL_S, self._spec.lease_s)
        with self._changed:
            while self._may_be_heard() and self._line.failure is None and time.monotonic() < deadline:
                self._changed.wait(_AGAIN_EVERY_S)
        self._hears = True  # whatever it still says
        self._line.close()

    def _may_be_heard(self) -> bool:
        """Return whether there is a last word, and perhaps a consumer, that does not know it yet."""
        somebody = self._meeting is not None or not self._has_looked
        return self._last is not None and somebody and not (self._is_heard or self._hears)

    def _broken(self) -> str | None:
        """Return what is wrong with the consumer, if anything is."""
        if self._line.failure is not None:
            return f"the stream of namespace {self._spec.namespace} failed: {self._line.failure}"
        if self._trouble is None and self._consumer and time.monotonic() - self._heard_at > self._spec.lease_s:
            return (
                f"the consumer {self._spec.name} gave no sign of life for {self._spec.lease_s:g} s, and took "
                f"{self.taken} items: look at what it says itself, and start both again"
            )
        return self._trouble

    def _silence(self, within_s: float) -> str:
        if self._consumer is None:
            where = "nowhere yet" if self._meeting is None else f"at {self._meeting.host}:{self._meeting.port}"
            return (
                f"no consumer {self._spec.name} was found ({where}) within {within_s:g} s: start it, or wait longer"
            )
        return (
            f"the consumer {self._spec.name} took only {self.taken} items within {within_s:g} s: wait longer for it"
        )

    def _encode(self, message: tuple[Sent | Beat, Data | None]) -> list[bytes | memoryview]:
        event, carried = message
        if isinstance(event, Sent):
            self._n_sent = event.number + 1
        token = "" if self._meeting is None else self._meeting.token
        data = encode(event, _password(self._spec, token))
        return [data] if carried is None else [data, carried]

    def _on_beat(self) -> float:
        if self._consumer is None:
            self._meet()
            self._has_looked = True
        # Behind what is still to be sent, for it says how much that was.
        if self._line.is_idle and self._meeting is not None:
            beat = replace(self._last or Beat(self._stream, self._session, self._n_sent), heard=self._hears)
            with suppress(zmq.Again):  # nobody is there
                self._line.socket.send_multipart(self._encode((beat, None)), zmq.NOBLOCK)
        waits = self._consumer is None or (self._last is not None and not self._is_heard)
        return min(_AGAIN_EVERY_S, self._spec.lease_s / _BEATS) if waits else self._spec.lease_s / _BEATS

    def _meet(self) -> None:
        """Connect to where the consumer listens, or to where it does now: the last word may be of one that died."""
        options = dict(self._spec.options)
        port = int(options.get("port", "0"))
        meeting = Meeting(options.get("host", LOOPBACK), port, own_token()) if port else look(_file(self._spec))
        if meeting is None or meeting == self._meeting:
            return
        if self._meeting is not None:
            self._line.socket.disconnect(self._meeting.url)
        self._line.socket.setsockopt(zmq.IPV6, int(":" in meeting.host))
        self._line.socket.connect(meeting.url)
        self._meeting = meeting

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        token = "" if self._meeting is None else self._meeting.token
        message = decode(frames[0].bytes, _password(self._spec, token))
        if not isinstance(message, Taken) or message.stream != self._stream:
            return
        with self._changed:
            if message.session != (self._consumer or message.session):
                self._trouble = f"the consumer {self._spec.name} was started anew: start this producer again as well"
            else:
                self._consumer = message.session
                self._heard_at = time.monotonic()
                self.taken = max(self.taken, message.taken)
                self._trouble = self._trouble or self._told(message.state)
                self._is_heard |= message.heard
                self.enough |= message.state == "enough"
                self._hears |= message.state not in ("open", "enough")
            self._changed.notify_all()
        if self._hears:
            self._on_beat()

    def _told(self, state: State) -> str | None:
        if state == "refused":
            return (
                f"the consumer {self._spec.name} has a producer of stream {self._stream} already: choose another "
                "--namespace, or end the other one"
            )
        if state == "broken":
            return f"the consumer {self._spec.name} gave up: look at what it says itself, and start both again"
        return None


@dataclass(slots=True)
class _Peer:
    """A producer that was heard of."""

    session: str
    identity: bytes
    heard_at: float
    ended: bool = False  # its last word is in the queue, or it is gone
    hears: bool = False  # our last word
    enough: bool = False  # was seen of it


class ZmqInlet:
    """A consumer's end: listens, and queues what came.

    Parameters
    ----------
    streams
        Of which it takes items; None for any, each as long as it lasts.
    """

    def __init__(self, spec: StreamSpec, streams: Sequence[int] | None) -> None:
        self._spec = spec
        self._session = os.urandom(8).hex()
        self._changed = threading.Condition()
        self._queue: deque[tuple[Sent | Beat, Data | None]] = deque()
        self._is_open = streams is None
        self._most = (spec.ahead + 1) * (_MOST_STREAMS if streams is None else len(streams))
        self._taken = defaultdict(int, dict.fromkeys(streams or (), 0))
        self._peers: dict[int, _Peer] = {}
        self._state: State = "open"
        self.strangers = 0
        options = {zmq.MAXMSGSIZE: _LARGEST_MESSAGE, zmq.SNDHWM: 0, **_alive(spec)}
        self._line: Line[tuple[bytes, Taken]] = Line(
            zmq.ROUTER, options, self._encode, self._on_message, self._on_beat
        )
        try:
            self._meeting, self._file = self._listen()
        except BaseException:
            self._line.close()
            raise
        self._line.start()

    def receive(self, within_s: float) -> tuple[Sent | Beat, Data | None] | None:
        """Return the next event, or the end of a stream, with the bytes that came with it; None if there was none."""
        deadline = time.monotonic() + within_s
        with self._changed:
            while not self._queue:
                if self._line.failure is not None:
                    raise StreamBroken(
                        f"the stream of namespace {self._spec.namespace} failed"
                    ) from self._line.failure
                for stream, peer in self._peers.items():
                    if not peer.ended and time.monotonic() - peer.heard_at > self._spec.lease_s:
                        peer.ended = True
                        return Beat(stream, peer.session, 0, "gone"), None
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(min(left_s, self._spec.lease_s / _BEATS))
            return self._queue.popleft()

    def acknowledge(self, stream: int, taken: int) -> None:
        """Tell a producer how many items were taken."""
        with self._changed:
            peer = self._peers.get(stream)
            if peer is None and self._is_open:
                return  # it ended, and is forgotten
            self._taken[stream] = taken
        if peer is not None:
            self._line.send((peer.identity, Taken(stream, self._session, taken, self._state_of(peer))))

    def stop(self, stream: int) -> None:
        """Tell a producer that enough was seen of its stream: at once, and whenever it is heard of again."""
        with self._changed:
            peer = self._peers.get(stream)
            if peer is None:
                return
            peer.enough = True
            taken = self._taken[stream]
        self._line.send((peer.identity, Taken(stream, self._session, taken, self._state_of(peer))))

    def close(self, state: State) -> None:
        """Tell producers, and stop listening once they know, or after some seconds."""
        deadline = time.monotonic() + min(_FAREWELL_S, self._spec.lease_s)
        with self._changed:
            self._state = state
            while not self._all_know() and self._line.failure is None and time.monotonic() < deadline:
                self._line.beat()
                self._changed.wait(_AGAIN_EVERY_S)
        self._line.close()
        if self._file is not None:
            withdraw(self._file, self._meeting)

    def _all_know(self) -> bool:
        """Return whether all producers that live heard the last word."""
        now = time.monotonic()
        return all(peer.hears or now - peer.heard_at > self._spec.lease_s for peer in self._peers.values())

    def _listen(self) -> tuple[Meeting, Path | None]:
        """Bind, and write down where, unless the port was agreed upon."""
        options = dict(self._spec.options)
        host, port = options.get("host", LOOPBACK), int(options.get("port", "0"))
        self._line.socket.setsockopt(zmq.IPV6, int(":" in host))
        if "fd" in options:
            self._line.socket.setsockopt(zmq.USE_FD, int(options["fd"]))
        try:
            self._line.socket.bind(tcp(host, port or "*"))
        except zmq.ZMQError as error:
            raise BadInput(
                f"a consumer cannot listen at {host}:{port} ({error}): name another --address of this machine"
            ) from error
        if port:
            return Meeting(host, port, own_token()), None
        bound = self._line.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        meeting = Meeting(host, int(bound.rpartition(":")[2]), fresh_token())
        file = _file(self._spec)
        publish(file, meeting)
        return meeting, file

    def _encode(self, message: tuple[bytes, Taken]) -> list[bytes]:
        identity, taken = message
        return [identity, encode(taken, _password(self._spec, self._meeting.token))]

    def _on_beat(self) -> float:
        # By itself, for a producer's beats may be stuck behind what it sends.
        with self._changed:
            if self._is_open:
                self._forget_ended()
            for stream, peer in self._peers.items():
                if not peer.hears:
                    self._reply(peer, stream)
        return self._spec.lease_s / _BEATS

    def _forget_ended(self) -> None:
        """Forget producers that ended: of any stream there may be as many as the consumer lives long."""
        now = time.monotonic()
        for stream, peer in list(self._peers.items()):
            if peer.ended and (peer.hears or now - peer.heard_at > self._spec.lease_s):
                del self._peers[stream]
                self._taken.pop(stream, None)

    def _state_of(self, peer: _Peer) -> State:
        return "enough" if peer.enough and self._state == "open" else self._state

    def _reply(self, peer: _Peer, stream: int) -> None:
        taken = Taken(stream, self._session, self._taken[stream], self._state_of(peer), peer.ended)
        self._send(peer.identity, taken)

    def _send(self, identity: bytes, taken: Taken) -> None:
        with suppress(zmq.Again):  # nobody is there
            self._line.socket.send_multipart(self._encode((identity, taken)), zmq.NOBLOCK)

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        identity, *parts = frames
        message = None
        if 1 <= len(parts) <= 2 and len(parts[0]) <= MAX_EVENT_BYTES:
            message = decode(parts[0].bytes, _password(self._spec, self._meeting.token))
        if isinstance(message, Sent | Beat) and (self._is_open or message.stream in self._taken):
            self._on_event(identity.bytes, message, parts[1].buffer if len(parts) == 2 else None)
        else:
            self.strangers += 1

    def _on_event(self, identity: bytes, message: Sent | Beat, carried: Data | None) -> None:
        with self._changed:
            peer = self._peers.setdefault(message.stream, _Peer(message.session, identity, 0.0))
            if peer.session != message.session:
                self.strangers += 1
                self._send(identity, Taken(message.stream, self._session, 0, "refused", True))
                return
            peer.identity, peer.heard_at = identity, time.monotonic()
            told = isinstance(message, Sent) or message.state != "open"
            # More than producers may be ahead is of none that keeps to the bound; it counts as lost.
            if told and not peer.ended and len(self._queue) < self._most:
                peer.ended = isinstance(message, Beat)
                self._queue.append((message, carried))
            if isinstance(message, Beat):
                peer.hears |= message.heard
                if not peer.hears:
                    self._reply(peer, message.stream)
            self._changed.notify_all()


def _file(spec: StreamSpec) -> Path:
    folder = dict(spec.options).get("folder")
    return (folder_of_this_user() if folder is None else Path(folder)) / f".{spec.name}.stream"


def _password(spec: StreamSpec, token: str) -> str:
    return f"{spec.name} {token}"


def _alive(spec: StreamSpec) -> dict[int, int]:
    """Return options by which a connection whose other end went silent is closed, and made anew."""
    lease_ms = max(1, round(1000 * spec.lease_s))
    return {zmq.HEARTBEAT_IVL: max(1, lease_ms // _BEATS), zmq.HEARTBEAT_TIMEOUT: lease_ms}
