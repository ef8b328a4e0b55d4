"""One client of an IMD server: what it has yet to be sent, and what it said."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from tasks.imd_bounds import ImdBounds
from tasks.imd_protocol import HEADER, Header


class Garbage(Exception):
    """A client said what no client of this protocol says, or more than it may."""


@dataclass(slots=True, eq=False)
class ImdClient:
    """A connection; whoever shares it between threads holds a lock.

    Attributes
    ----------
    deadline
        Until when the client must have said what it owes, on the monotonic clock.
    every
        Of how many frames it wants one.
    listens
        Whether it has said GO.
    too_slow
        Whether it is to be disconnected, because a frame waited long enough.
    frames, n_bytes
        What it has yet to be sent.
    n_sent_of_first
        Bytes of the first frame that are sent already.
    blocked
        Whether the kernel takes no more for now.
    finished
        Whether it was told that nothing more comes.
    """

    socket: socket.socket
    bounds: ImdBounds
    came_at_frame: int
    deadline: float | None
    every: int = 1
    listens: bool = False
    paused: bool = False
    too_slow: bool = False
    gone: bool = False
    frames: deque[bytes] = field(default_factory=deque)
    n_bytes: int = 0
    n_sent_of_first: int = 0
    blocked: bool = False
    finished: bool = False
    _unread: bytes = b""
    _n_commands: int = 0

    def take(self, frame: bytes) -> bool:
        """Return whether a frame was taken whole."""
        if not self.has_room(len(frame)):
            return False
        self.frames.append(frame)
        self.n_bytes += len(frame)
        return True

    def has_room(self, n_bytes: int) -> bool:
        """Return whether a frame of this many bytes would be taken."""
        if not self.frames:
            return True
        return len(self.frames) < self.bounds.buffer_frames and self.n_bytes + n_bytes <= self.bounds.buffer_bytes

    @property
    def is_filling(self) -> bool:
        """Whether more than half of what may wait for the client does."""
        return 2 * len(self.frames) > self.bounds.buffer_frames or 2 * self.n_bytes > self.bounds.buffer_bytes

    def next_bytes(self, n_frames: int) -> list[memoryview]:
        """Return what is to be sent first, of at most so many frames."""
        parts = [memoryview(frame) for frame in islice(self.frames, n_frames)]
        if parts:
            parts[0] = parts[0][self.n_sent_of_first :]
        return parts

    def mark_sent(self, n_bytes: int) -> int:
        """Forget what was sent, and return how many frames are whole by it."""
        self.n_bytes -= n_bytes
        self.n_sent_of_first += n_bytes
        n_frames = 0
        while self.frames and self.n_sent_of_first >= len(self.frames[0]):
            self.n_sent_of_first -= len(self.frames.popleft())
            n_frames += 1
        return n_frames

    def commands(self, data: bytes, n_frames: int) -> Iterator[tuple[Header, int]]:
        """Yield what a client said, as header and value, and keep a header that is not whole.

        Parameters
        ----------
        n_frames
            Published so far.

        Raises
        ------
        Garbage
            When a header is none, or when there are too many.
        """
        data = self._unread + data
        n_whole = len(data) // HEADER.size
        self._unread = data[n_whole * HEADER.size :]
        self._n_commands += n_whole
        n_allowed = self.bounds.n_commands + self.bounds.n_commands_per_frame * (n_frames - self.came_at_frame)
        if self._n_commands > n_allowed:
            raise Garbage(f"{self._n_commands} commands, of which {n_allowed} are taken")
        for kind, value in HEADER.iter_unpack(data[: n_whole * HEADER.size]):
            try:
                yield Header(kind), value
            except ValueError:
                raise Garbage(f"header {kind}, which no client sends") from None

    def owe(self, now: float, said_something: bool) -> None:
        """Set the deadline for what is still owed: the GO, or the rest of a header."""
        if not self.listens:
            return  # since it came
        if said_something or not self._unread:
            self.deadline = None
        if self._unread and self.deadline is None:
            self.deadline = now + self.bounds.patience_s
