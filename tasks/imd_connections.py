"""The connections of an IMD server: clients come, are heard and are sent what their buffers hold, by one thread."""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import struct
import termios
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace

from tasks.errors import BadInput
from tasks.imd_bounds import ImdBounds, ImdCounts
from tasks.imd_client import Garbage, ImdClient
from tasks.imd_protocol import Header

# Frames handed to the kernel in one call, and bytes taken from it.
_BATCH_FRAMES = 64
_HEARD_BYTES = 4096
# How soon frames are looked for again once some were sent. Of 22 atoms to 200 clients, one every 2 ms, a frame costs
# 0.8 ms of CPU like this, and 1.4 ms where each wakes the thread.
_LOOK_AGAIN_S = 0.01
# How long no connection is accepted where the process has no descriptor left: the listener stays readable.
_DEAF_S = 1.0
# No event tells that a client's machine has acknowledged what was sent.
_ACKNOWLEDGED_S = 0.01


class Connections:
    """Clients on one port that the kernel picked, until `close`.

    Parameters
    ----------
    greeting
        Sent to every client that comes.
    obey
        Does what a client asks for, and returns whether it stays; called with the lock held, and may raise `Garbage`.

    Attributes
    ----------
    changed
        The one lock, not held while anything is sent. Notified of whatever a client does, and of room in its buffer.
    clients
        Those that are here. A frame in a client's buffer is sent after the next `ring`.
    tally
        The figures of an `ImdCounts`, as they grow.

    Raises
    ------
    BadInput
        When the address cannot be listened on.
    """

    def __init__(
        self, host: str, greeting: bytes, bounds: ImdBounds, obey: Callable[[ImdClient, Header, int], bool]
    ) -> None:
        self._greeting, self._bounds, self._obey = greeting, bounds, obey
        self._listener = _listen(host)
        self.host: str = self._listener.getsockname()[0]
        self.port: int = self._listener.getsockname()[1]
        # Rung by the simulation, heard by the thread, unless this will look for frames soon by itself.
        self._bell, self._ear = socket.socketpair()
        self._rung = self._attentive = False
        self._selector = selectors.DefaultSelector()
        for readable in (self._listener, self._ear):
            readable.setblocking(False)
            self._selector.register(readable, selectors.EVENT_READ)
        self._deaf_until: float | None = None
        self.changed = threading.Condition(threading.Lock())
        self.clients: list[ImdClient] = []
        self.tally = SimpleNamespace(**asdict(ImdCounts()))
        self.closing = False
        _open.add(self)
        self._thread = threading.Thread(target=self._serve, name=f"imd-{self.port}", daemon=True)
        self._thread.start()

    def ring(self, at_once: bool = True) -> None:
        """Have the thread send what is in the buffers, soon or at once."""
        with self.changed:
            if self._rung or (self._attentive and not at_once):
                return
            self._rung = True
        try:
            self._bell.send(b"\0")
        except OSError:  # closed: nobody serves any more
            return

    def close(self) -> None:
        """Send what clients have yet to be sent, for as long as that may take, and disconnect them."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.ring()
        self._thread.join(self._bounds.flush_s + 10.0)
        _open.discard(self)

    def _serve(self) -> None:
        try:
            while not self.closing:
                self._turn(self._next_deadline())
            self._flush()
        finally:
            for client in list(self.clients):
                self._part(client)
            self._selector.close()
            for end in (self._listener, self._bell, self._ear):
                end.close()

    def _turn(self, limit_s: float | None) -> None:
        """Wait for something to do, until the limit, and do it."""
        if self._attentive:
            limit_s = _LOOK_AGAIN_S if limit_s is None else min(limit_s, _LOOK_AGAIN_S)
        for key, events in self._selector.select(limit_s):
            if key.fileobj is self._listener:
                self._admit()
            elif key.fileobj is self._ear:
                self._ear.recv(16)
                # Before clients are looked at: what comes later rings again.
                with self.changed:
                    self._rung = False
            else:
                key.data.blocked = key.data.blocked and not events & selectors.EVENT_WRITE
                if events & selectors.EVENT_READ:
                    self._hear(key.data)
        now, sent = time.monotonic(), False
        for client in list(self.clients):
            if client.too_slow:
                self._part(client)
            elif client.deadline is not None and client.deadline <= now:
                self._part(client, garbage=True)
            elif client.frames and not client.blocked:
                self._send(client)
                sent = True
        with self.changed:
            # Frames that came meanwhile rang no bell.
            self._attentive = sent or any(c.frames and not c.blocked for c in self.clients)
        if self._deaf_until is not None and self._deaf_until <= now and not self.closing:
            self._deaf_until = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _next_deadline(self) -> float | None:
        deadlines = [c.deadline for c in self.clients if c.deadline is not None]
        if self._deaf_until is not None:
            deadlines.append(self._deaf_until)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _admit(self) -> None:
        for _ in range(self._bounds.n_clients):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._selector.unregister(self._listener)
                self._deaf_until = time.monotonic() + _DEAF_S
                return
            refused = len(self.clients) >= self._bounds.n_clients
            with self.changed:
                self.tally.n_refused += refused
                self.tally.n_clients += not refused
            if refused:
                connection.close()
            else:
                self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._bounds.kernel_bytes)
        try:
            connection.send(self._greeting)  # whole, since nothing was sent before
        except OSError:
            connection.close()
            return
        deadline = time.monotonic() + self._bounds.patience_s
        client = ImdClient(connection, self._bounds, self.tally.n_published, deadline)
        self._selector.register(connection, selectors.EVENT_READ, client)
        with self.changed:
            self.clients.append(client)

    def _hear(self, client: ImdClient) -> None:
        try:
            data = client.socket.recv(_HEARD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        stays, garbage = bool(data), False
        with self.changed:
            try:
                n_commands = 0
                for header, value in client.commands(data, self.tally.n_published):
                    n_commands += 1
                    if not (stays := self._obey(client, header, value)):
                        break
                client.owe(time.monotonic(), n_commands > 0)
            except Garbage:
                stays, garbage = False, True
            self.changed.notify_all()
        if not stays:
            self._part(client, garbage)

    def _send(self, client: ImdClient) -> None:
        with self.changed:
            parts = client.next_bytes(_BATCH_FRAMES)
        try:
            n_bytes = client.socket.sendmsg(parts)
        except BlockingIOError:
            n_bytes = 0
        except OSError:
            self._part(client)
            return
        with self.changed:
            self.tally.n_sent += client.mark_sent(n_bytes)
            self.tally.bytes_sent += n_bytes
            client.blocked = bool(client.frames)
            self.changed.notify_all()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.blocked else 0)
        if wanted != self._selector.get_key(client.socket).events:
            self._selector.modify(client.socket, wanted, client)

    def _part(self, client: ImdClient, garbage: bool = False) -> None:
        self._selector.unregister(client.socket)
        with self.changed:
            self.clients.remove(client)
            client.gone = True
            self.tally.n_garbage += garbage
            self.tally.n_dropped += len(client.frames)
            client.frames.clear()
            self.changed.notify_all()
        client.socket.close()

    def _flush(self) -> None:
        if self._deaf_until is None:
            self._selector.unregister(self._listener)
        self._listener.close()
        for client in [c for c in self.clients if not c.listens]:
            self._part(client)
        until = time.monotonic() + self._bounds.flush_s
        self._turn(0.0)
        while self.clients and (left := until - time.monotonic()) > 0.0:
            for client in [c for c in self.clients if not c.frames]:
                self._finish(client)
            self._turn(min(left, _ACKNOWLEDGED_S))

    def _finish(self, client: ImdClient) -> None:
        """Tell a client that nothing more comes, and leave it once it has everything.

        A connection closed before that is reset by the next thing the client says, and what is under way is lost.
        """
        try:
            if not client.finished:
                client.finished = True
                client.socket.shutdown(socket.SHUT_WR)
            (n_unacknowledged,) = struct.unpack("=i", fcntl.ioctl(client.socket, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            n_unacknowledged = 0
        if n_unacknowledged <= 1:  # the end itself counts as one byte
            self._part(client)

    def _forget(self) -> None:
        """Let go of all that a child process inherits by a fork; the parent's connections stay as they are."""
        self.changed = threading.Condition(threading.Lock())  # somebody may have held the old one
        clients, self.clients = self.clients, []
        self.closing = True
        self._selector.close()
        for end in (self._listener, self._bell, self._ear, *(c.socket for c in clients)):
            end.close()


def _listen(host: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        # Clients of this protocol speak IPv4 where a name has both.
        family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family, backlog=socket.SOMAXCONN)
    except OSError as error:
        raise BadInput(f"IMD cannot listen on {host}: {error}; name an address of this machine") from error


_open: weakref.WeakSet[Connections] = weakref.WeakSet()


def _forget_all() -> None:
    for connections in list(_open):
        connections._forget()


os.register_at_fork(after_in_child=_forget_all)
