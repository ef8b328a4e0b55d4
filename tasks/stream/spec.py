"""What both ends of a stream must agree on; it travels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasks.messages import EventKind

LOOPBACK = "127.0.0.1"

# No sign that means something in a file's name, or in a pattern of Redis.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def is_namespace(text: str) -> bool:
    """Return whether a text can name the place where ends of a stream meet."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """Where the producers of a consumer find it, and what they wait for.

    Attributes
    ----------
    namespace
        Name of the meeting place: prefix of keys in Redis, of a file in ``folder`` for ZeroMQ.
    events
        What carries the events.
    consumer
        Rank of the consumer; each has a meeting place of its own.
    options
        For ``redis`` ``(("hostname", ...), ("port", ...))``. For ``zmq`` ``host`` (where the consumer listens,
        loopback by default), ``port`` (0, the default: the kernel's choice) and ``folder``, a directory that both
        see, where the consumer writes its address if the port is the kernel's choice; ``fd`` where a socket listens
        there already.
    ahead
        How many items a producer may be ahead of the consumer: the bound of everything that is held.
    lease_s
        An end that gave no sign of life for so long is gone. Bytes in messages delay the signs behind them: an item
        must pass the link in less than this.
    wait_s
        Bound on each wait for an end that lives, or has not come yet.
    """

    namespace: str
    events: EventKind
    options: tuple[tuple[str, str], ...] = ()
    consumer: int = 0
    ahead: int = 16
    lease_s: float = 10.0
    wait_s: float = 300.0

    @property
    def name(self) -> str:
        """Name of this consumer's meeting place."""
        return f"{self.namespace}.{self.consumer}"
