"""One running segment, live to whoever listens: a server of IMDv3 (see `tasks.imd_protocol`).

What a client does costs the segment a bounded buffer, a bounded wait, or nothing. IMD knows no authentication:
whoever reaches the port may read, pause and end the segment.
"""

from __future__ import annotations

import math
import time
from typing import Literal, Self

import numpy as np

from tasks.imd_bounds import ImdBounds, ImdCounts
from tasks.imd_client import Garbage, ImdClient
from tasks.imd_connections import Connections
from tasks.imd_protocol import Header, pack_frame, pack_greeting

__all__ = ["ImdBounds", "ImdCounts", "ImdServer"]


class ImdServer:
    """Serve a segment's frames to many clients, from a thread of its own, until it is closed.

    Parameters
    ----------
    host
        The address to listen on; loopback unless others shall reach it. The kernel picks the port, and clients may
        connect as soon as this returns.
    n_atoms
        Of the frames that are served.
    timestep_ps
        Of the integrator.
    periodic
        Whether frames have a box.
    frame_steps
        Integration steps from one frame to the next. A client's transmission rate is in steps, as the protocol has
        it, and is rounded up to whole frames; with 1 it counts frames.
    when_slow
        Whether a frame that does not fit a client's buffer is dropped for this client, or waits.

    Raises
    ------
    BadInput
        When the address cannot be listened on.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        n_atoms: int,
        timestep_ps: float,
        periodic: bool = False,
        frame_steps: int = 1,
        when_slow: Literal["drop", "wait"] = "drop",
        bounds: ImdBounds | None = None,
    ) -> None:
        self._n_atoms, self._timestep_ps, self._periodic = n_atoms, timestep_ps, periodic
        self._frame_steps, self._waits = frame_steps, when_slow == "wait"
        self._bounds = bounds or ImdBounds()
        # A client may ask for these before the next line has returned.
        self._needs_listener = self._killed = False
        self._connections = Connections(host, pack_greeting(periodic), self._bounds, self._obey)
        self.host, self.port = self._connections.host, self._connections.port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def publish(self, positions: np.ndarray, box: np.ndarray | None = None, *, step: int) -> None:
        """Hand a frame to the clients, and return when none of them holds the segment any more.

        Parameters
        ----------
        positions : ndarray of shape (n_atoms, 3), float
            In nm.
        box : ndarray of shape (3, 3), float, or None
            In nm, a vector in each row.
        step
            Integration steps since the segment's start.

        Raises
        ------
        ValueError
            When the frame is not what clients were told to expect. Where nobody listens it is not looked at.
        """
        self._connections.tally.n_published += 1
        if not self._connections.clients and not self._needs_listener:
            return
        with self._connections.changed:
            due = [
                c
                for c in self._connections.clients
                if c.listens and self._connections.tally.n_published % c.every == 0
            ]
        if due:
            if positions.shape != (self._n_atoms, 3) or (box is not None) != self._periodic:
                told = f"{self._n_atoms} atoms {'with' if self._periodic else 'without'} a box"
                raise ValueError(f"a frame of shape {positions.shape} and box {box}: clients were told of {told}")
            self._hand_out(pack_frame(positions, box, step, self._timestep_ps), due)
        self._hold()

    @property
    def killed(self) -> bool:
        """Whether a client has asked for the segment's end."""
        return self._killed

    @property
    def counts(self) -> ImdCounts:
        """What happened so far; what happened, once closed."""
        with self._connections.changed:
            return ImdCounts(**{**vars(self._connections.tally), "killed": self._killed})

    def wait_for_listeners(self, n: int, limit_s: float) -> bool:
        """Return whether so many clients have said GO, waiting for them until the limit."""
        with self._connections.changed:
            return self._connections.changed.wait_for(
                lambda: sum(c.listens for c in self._connections.clients) >= n, limit_s
            )

    def close(self) -> None:
        """Send what clients have yet to be sent, within `ImdBounds.flush_s`, and disconnect them."""
        self._connections.close()

    def _hand_out(self, frame: bytes, due: list[ImdClient]) -> None:
        with self._connections.changed:
            slow = [c for c in due if not c.gone and not c.take(frame)]
            is_urgent = any(c.is_filling for c in due)
        self._connections.ring(at_once=is_urgent)
        if not slow:
            return
        with self._connections.changed:
            if self._waits:
                began = time.monotonic()
                self._connections.changed.wait_for(
                    lambda: self._connections.closing or all(c.gone or c.has_room(len(frame)) for c in slow),
                    self._bounds.wait_s,
                )
                self._connections.tally.waited_s += time.monotonic() - began
                slow = [c for c in slow if not c.gone and not c.take(frame)]
                for client in slow:
                    client.too_slow, client.listens = True, False
                self._connections.tally.n_too_slow += len(slow)
            self._connections.tally.n_dropped += len(slow)
        if self._waits:
            self._connections.ring()

    def _hold(self) -> None:
        with self._connections.changed:
            if not self._is_held():
                return
            self._connections.tally.n_pauses += 1
            self._connections.changed.notify_all()
            began = time.monotonic()
            ended = self._connections.changed.wait_for(
                lambda: not self._is_held(), self._bounds.pause_s - self._connections.tally.paused_s
            )
            self._connections.tally.paused_s += time.monotonic() - began
            if not ended:
                self._connections.tally.n_pauses_cut += 1
                self._needs_listener = False
                for client in self._connections.clients:
                    client.paused = False

    def _is_held(self) -> bool:
        if self._connections.closing or self._killed:
            return False
        if self._needs_listener and not any(c.listens for c in self._connections.clients):
            return True
        return any(c.paused for c in self._connections.clients)

    def _obey(self, client: ImdClient, header: Header, value: int) -> bool:
        """Do what a client asks for, and return whether it stays."""
        match header:
            case Header.GO:
                client.listens = not client.too_slow
            case Header.PAUSE | Header.RESUME:
                client.paused = header is Header.PAUSE
            case Header.TRANSMISSION_RATE:
                client.every = max(1, math.ceil(value / self._frame_steps))
            case Header.WAIT:
                self._needs_listener = value != 0
            case Header.KILL:
                self._killed = True
            case Header.DISCONNECT:
                return False
            case _:
                raise Garbage(f"header {header.name}, which only servers send")
        return True
