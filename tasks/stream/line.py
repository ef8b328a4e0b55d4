"""A ZeroMQ socket and the thread that owns it: sockets are of one thread, and beats must not wait for work."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import zmq

# How long what was handed over last may take to leave when a socket is closed.
_LINGER_MS = 1000

_BEAT, _SEND = b"beat", b""

T = TypeVar("T")


class Line(Generic[T]):
    """Runs a socket until it is closed.

    Parameters
    ----------
    encode
        What a message is on the wire; called in the thread as the others, when the message can leave.
    on_message
        Called with the parts of what came.
    on_beat
        Called now and then; returns seconds until the next time.
    """

    def __init__(
        self,
        kind: int,
        options: dict[int, int],
        encode: Callable[[T], Sequence[Any]],
        on_message: Callable[[list[zmq.Frame]], None],
        on_beat: Callable[[], float],
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in {**options, zmq.LINGER: _LINGER_MS}.items():
            self.socket.setsockopt(option, value)
        self._bell, self._heard = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._heard.bind("inproc://bell")
        self._bell.connect("inproc://bell")
        self._ringing = threading.Lock()
        self._encode, self._on_message, self._on_beat = encode, on_message, on_beat
        self._outgoing: deque[T] = deque()
        self._over = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    def start(self) -> None:
        """Begin, once the socket is bound or can be connected."""
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether all that was to be sent has left."""
        return not self._outgoing

    def send(self, message: T) -> None:
        """Have a message sent, in order, as soon as somebody is there to take it."""
        self._outgoing.append(message)
        self._wake(_SEND)

    def beat(self) -> None:
        """Have the thread beat at once."""
        self._wake(_BEAT)

    def close(self) -> None:
        """Send what can be sent, and end the thread and its sockets, within some seconds."""
        self._over = True
        if self._thread.is_alive():
            self._wake(_BEAT)
            self._thread.join()
        for socket in (self._bell, self._heard, self.socket):
            socket.close()
        self._context.term()

    def _wake(self, why: bytes) -> None:
        with self._ringing:
            self._bell.send(why)

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001  # told to whoever waits for the other end
            self.failure = error

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._heard, zmq.POLLIN)
        beat_at = 0.0
        while True:
            over = self._over  # looked at once, so that the last word is said after all else
            all_sent = self._flush()
            if over or time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self._on_beat()
            if over:
                return
            poller.register(self.socket, zmq.POLLIN if all_sent else zmq.POLLIN | zmq.POLLOUT)
            ready: dict[Any, int] = dict(poller.poll(max(0, round((beat_at - time.monotonic()) * 1000))))
            if self._heard in ready and self._heard.recv() == _BEAT:
                beat_at = 0.0
            if ready.get(self.socket, 0) & zmq.POLLIN:
                self._on_message(self.socket.recv_multipart(copy=False))

    def _flush(self) -> bool:
        """Send what is waiting; return whether all of it went."""
        while self._outgoing:
            try:
                self.socket.send_multipart(self._encode(self._outgoing[0]), zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return False
            self._outgoing.popleft()
        return True
