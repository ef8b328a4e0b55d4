"""Events through Redis: a list of events for each consumer, of receipts for each producer, and a lease for each end.

redis-py's own calls, for ProxyStore's shims know neither a bound nor an end, and wait for ever for who is gone. All
keys begin with the name of the meeting place, and expire: what two killed ends leave is gone within a day.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from redis import Redis, RedisError
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from tasks.errors import StreamBroken, Unreachable
from tasks.stream.events import Beat, Data, Sent, State, Taken, decode, encode
from tasks.stream.spec import StreamSpec
from tasks.transport import PASSWORD_VARIABLE, port_here

_KEPT_S = 86_400

_CONNECTS_S = 5.0
# Beyond the time for which a command waits by itself.
_ANSWERS_S = 10.0

# Leases are renewed so many times before they end.
_BEATS = 4


class RedisOutlet:
    """A producer's end: queues events, and knows how many were taken.

    Attributes
    ----------
    enough
        Whether the consumer has seen enough.
    """

    def __init__(self, spec: StreamSpec, stream: int, session: str) -> None:
        self._spec, self._stream, self._session = spec, stream, session
        self._keys = _Keys(spec)
        self._receipts = self._keys.receipts(session)
        self._redis = _client(spec)
        self.taken = 0
        self.enough = False
        self._consumer: str | None = None
        self._state: State = "open"
        with _reaching(spec):
            self._refuse_a_second()
            self._lease = _Lease(spec, self._keys.producer(stream), session)

    def send(self, sent: Sent, carried: Data | None) -> None:
        """Queue an event; bytes are elsewhere."""
        self._push(sent)

    def finish(self, beat: Beat) -> None:
        """Queue the last word."""
        self._state = beat.state
        self._push(beat)

    @property
    def met(self) -> bool:
        """Whether what was sent may be found by the consumer: the queue has it."""
        return True

    def look(self) -> None:
        """Learn how many were taken, without waiting.

        Raises
        ------
        StreamBroken
            When the consumer gave up.
        Unreachable
            When Redis does not answer.
        """
        self._look(0.0)

    def wait_taken(self, at_least: int, within_s: float) -> None:
        """Block until the consumer took so many items.

        Raises
        ------
        StreamBroken
            When it is gone, gave up, or did not within ``within_s``.
        Unreachable
            When Redis does not answer.
        """
        self._look(0.0)
        deadline = time.monotonic() + within_s
        while self.taken < at_least:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise StreamBroken(self._silence(within_s))
            if not self._look(min(left_s, self._spec.lease_s / _BEATS)):
                self._check_lease()

    def close(self) -> None:
        """Let the lease go.

        With it would go the last word of one that gave up, so its lease runs out by itself where a consumer is to
        hear it; where there is none, its events go too.
        """
        is_awaited = False
        with suppress(RedisError, OSError):
            if self._state == "broken":
                is_awaited = bool(self._redis.exists(self._keys.consumer))
                if not is_awaited:
                    self._take_back()
            self._redis.delete(self._receipts)
        self._lease.end(keep=is_awaited)
        self._redis.close()

    def _take_back(self) -> None:
        events: Any = self._redis.lrange(self._keys.events, 0, -1)
        for data in events:
            message = decode(data, self._spec.name)
            if message is not None and message.session == self._session:
                self._redis.lrem(self._keys.events, 0, data)

    def _refuse_a_second(self) -> None:
        if self._redis.exists(self._keys.producer(self._stream)):
            raise StreamBroken(
                f"namespace {self._spec.namespace} has a producer of stream {self._stream} already, or had one "
                f"within the last {self._spec.lease_s:g} s: choose another --namespace, or wait"
            )

    def _push(self, message: Sent | Beat) -> None:
        with _reaching(self._spec):
            _push(self._redis, self._keys.events, encode(message, self._spec.name))

    def _look(self, within_s: float) -> bool:
        """Read receipts; return whether there were any.

        Raises
        ------
        StreamBroken
            When the consumer says that it takes no more.
        """
        with _reaching(self._spec):
            found = [_pop(self._redis, self._receipts, within_s)] if within_s > 0 else []
            found += self._redis.lpop(self._receipts, 10_000) or []  # type: ignore[arg-type]
        for data in found:
            message = None if data is None else decode(data, self._spec.name)
            if isinstance(message, Taken):
                self._consumer = message.session
                self.taken = max(self.taken, message.taken)
                self.enough |= message.state == "enough"
                if message.state == "broken" and self._state == "open":
                    raise StreamBroken(
                        f"the consumer {self._spec.name} gave up: look at what it says itself, and start both again"
                    )
        return any(data is not None for data in found)

    def _check_lease(self) -> None:
        with _reaching(self._spec):
            there = _text(self._redis.get(self._keys.consumer))
        if there is not None and self._consumer is None:
            self._consumer = there
        if self._consumer is not None and there != self._consumer and not self._look(0.0):
            raise StreamBroken(
                f"the consumer {self._spec.name} gave no sign of life for {self._spec.lease_s:g} s, and took "
                f"{self.taken} items: look at what it says itself, and start both again"
            )

    def _silence(self, within_s: float) -> str:
        if self._consumer is None:
            return f"no consumer {self._spec.name} came within {within_s:g} s: start it, or wait longer"
        return (
            f"the consumer {self._spec.name} took only {self.taken} items within {within_s:g} s: wait longer for it"
        )


class RedisInlet:
    """A consumer's end: waits for events, and gives receipts.

    Parameters
    ----------
    streams
        Of which it takes items; None for any, each as long as it lasts.
    """

    def __init__(self, spec: StreamSpec, streams: Sequence[int] | None) -> None:
        self._spec = spec
        self._session = os.urandom(8).hex()
        self._keys = _Keys(spec)
        self._redis = _client(spec)
        self._streams = None if streams is None else set(streams)
        self._sessions: dict[int, str] = {}
        self._ended: set[int] = set()
        self.strangers = 0
        with _reaching(spec):
            if self._redis.exists(self._keys.consumer):
                raise StreamBroken(
                    f"namespace {spec.namespace} has a consumer {spec.consumer} already, or had one within the last "
                    f"{spec.lease_s:g} s: choose another --namespace, or wait"
                )
            self._lease = _Lease(spec, self._keys.consumer, self._session)

    def receive(self, within_s: float) -> tuple[Sent | Beat, Data | None] | None:
        """Return the next event, or the end of a stream; None if there was none.

        Raises
        ------
        Unreachable
            When Redis does not answer.
        """
        deadline = time.monotonic() + within_s
        while (left_s := deadline - time.monotonic()) > 0:
            with _reaching(self._spec):
                data = _pop(self._redis, self._keys.events, min(left_s, self._spec.lease_s / _BEATS))
                if data is None:
                    gone = self._gone()
                    # What it queued before it went comes first.
                    data = None if gone is None else self._redis.lpop(self._keys.events)  # type: ignore[assignment]
                    if gone is not None and data is None:
                        self._note_end(gone)
                        self._redis.delete(self._keys.receipts(gone.session))
                        return gone, None
            message = None if data is None else self._known(data)
            if message is not None:
                return message, None
        return None

    def acknowledge(self, stream: int, taken: int) -> None:
        """Give a producer a receipt."""
        self._tell(stream, taken, "open")

    def stop(self, stream: int) -> None:
        """Tell a producer that enough was seen of its stream."""
        self._tell(stream, 0, "enough")

    def close(self, state: State) -> None:
        """Tell producers that still send, and remove what is left of the meeting place."""
        self._lease.end()
        with suppress(Unreachable, RedisError, OSError):
            for stream in set(self._sessions) - self._ended if state == "broken" else ():
                self._tell(stream, 0, "broken")
            self._redis.delete(self._keys.events)
        self._redis.close()

    def _tell(self, stream: int, taken: int, state: State) -> None:
        session = self._sessions.get(stream)
        if session is not None:
            receipt = encode(Taken(stream, self._session, taken, state), self._spec.name)
            with _reaching(self._spec):
                _push(self._redis, self._keys.receipts(session), receipt)

    def _known(self, data: bytes) -> Sent | Beat | None:
        """Return an event of a producer that is listened to."""
        message = decode(data, self._spec.name)
        if not isinstance(message, Sent | Beat) or (
            self._streams is not None and message.stream not in self._streams
        ):
            self.strangers += 1
            return None
        if self._session_of(message.stream) != message.session:
            self.strangers += 1
            return None
        self._sessions[message.stream] = message.session
        if isinstance(message, Beat):
            self._note_end(message)
        return message

    def _note_end(self, last: Beat) -> None:
        if self._streams is not None:
            self._ended.add(last.stream)
            return
        # Of any stream there may be as many as the consumer lives long; none of them waits for receipts at its end.
        self._sessions.pop(last.stream, None)
        with _reaching(self._spec):
            self._redis.delete(self._keys.receipts(last.session))

    def _session_of(self, stream: int) -> str | None:
        """Return the producer of a stream: who was heard first of those that live.

        Of one that was killed before this consumer came only events are left, and they are nobody's.
        """
        if stream in self._sessions:
            return self._sessions[stream]
        with _reaching(self._spec):
            return _text(self._redis.get(self._keys.producer(stream)))

    def _gone(self) -> Beat | None:
        """Return the end of a stream whose producer let its lease run out."""
        for stream, session in self._sessions.items():
            if stream not in self._ended and _text(self._redis.get(self._keys.producer(stream))) != session:
                return Beat(stream, session, 0, "gone")
        return None


class _Keys:
    """Names of the keys of a meeting place."""

    def __init__(self, spec: StreamSpec) -> None:
        self._name = spec.name
        self.events = f"{spec.name}:events"
        self.consumer = f"{spec.name}:consumer"

    def producer(self, stream: int) -> str:
        """Of a producer's lease."""
        return f"{self._name}:producer:{stream}"

    def receipts(self, session: str) -> str:
        """Of what a producer is told."""
        return f"{self._name}:receipts:{session}"


class _Lease:
    """A key that is there while this process is: a thread renews it, whatever else the process does."""

    def __init__(self, spec: StreamSpec, key: str, session: str) -> None:
        self._key, self._session = key, session
        self._lease_ms = max(1, round(1000 * spec.lease_s))
        self._redis = _client(spec)
        self._renew()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def end(self, *, keep: bool = False) -> None:
        """Let go of it, or let it run out."""
        self._over.set()
        self._thread.join()
        with suppress(RedisError, OSError):
            if not keep:
                self._redis.delete(self._key)
        self._redis.close()

    def _keep(self) -> None:
        while not self._over.wait(self._lease_ms / 1000 / _BEATS):
            # A server that is gone is told by whatever else is asked of it.
            with suppress(RedisError, OSError):
                self._renew()

    def _renew(self) -> None:
        self._redis.set(self._key, self._session, px=self._lease_ms)


def _client(spec: StreamSpec) -> Redis:
    """Return a connection whose waits are bounded: a server that refuses is tried again for two seconds or so."""
    options = dict(spec.options)
    return Redis(
        host=options["hostname"],
        port=port_here(options["port"]),
        password=os.environ.get(PASSWORD_VARIABLE),
        socket_timeout=spec.lease_s / _BEATS + _ANSWERS_S,
        socket_connect_timeout=_CONNECTS_S,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), 4, (RedisConnectionError,)),
    )


def _push(redis: Redis, key: str, data: bytes) -> None:
    pipe = redis.pipeline()
    pipe.rpush(key, data)
    pipe.expire(key, _KEPT_S)
    pipe.execute()


def _pop(redis: Redis, key: str, within_s: float) -> bytes | None:
    """Return the first of a list, as soon as there is one."""
    # Zero would mean for ever.
    found: Any = redis.blpop([key], timeout=max(0.01, within_s))
    return None if found is None else bytes(found[1])


def _text(value: Any) -> str | None:
    return None if value is None else bytes(value).decode(errors="replace")


@contextmanager
def _reaching(spec: StreamSpec) -> Iterator[None]:
    """Turn errors of Redis into one sentence."""
    try:
        yield
    except (RedisError, OSError) as error:
        options = dict(spec.options)
        raise Unreachable(
            f"Redis at {options['hostname']}:{options['port']} does not answer ({error}): look whether it runs, and "
            f"whether {PASSWORD_VARIABLE} is its password"
        ) from error
