"""What the ends of a stream tell each other: small JSON objects, none of which is believed unseen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

Data = bytes | memoryview
Info = Mapping[str, float | int | str]

# Of a stream: open; all was sent; its producer or consumer gave up, is not wanted, or gives no sign of life; its
# consumer has seen enough, and the producer may end.
State = Literal["open", "over", "broken", "refused", "gone", "enough"]

# A larger event is refused where it is made: bulk does not belong in it.
MAX_EVENT_BYTES = 64_000


@dataclass(frozen=True, slots=True)
class Sent:
    """An item, by its number in the stream, and where its bytes are.

    Attributes
    ----------
    session
        Of the producer, drawn anew by each: a second one of the same stream is told from the first.
    checksum
        XXH3 of the packed bytes, in hexadecimal. It finds what is torn or decayed, not what is forged.
    key
        Where the bulk lies, as the stream's `Bulk` knows it.
    """

    stream: int
    session: str
    number: int
    n_bytes: int
    checksum: str
    key: tuple[str, ...] = ()
    info: Info = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Beat:
    """A producer lives; how many items it sent so far, and whether it heard the consumer's last word."""

    stream: int
    session: str
    sent: int
    state: State = "open"
    heard: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A consumer lives; how many items of this stream it took (or lost), and whether it heard its last word."""

    stream: int
    session: str
    taken: int
    state: State = "open"
    heard: bool = False


Message = Sent | Beat | Taken

_KINDS: dict[str, type[Sent] | type[Beat] | type[Taken]] = {"sent": Sent, "beat": Beat, "taken": Taken}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_COUNTS = ("stream", "number", "n_bytes", "sent", "taken")
_TEXTS = ("session", "checksum")
_STATES = get_args(State)


def encode(message: Message, password: str) -> bytes:
    """Return a message as JSON.

    Parameters
    ----------
    password
        What the other end expects, namespace and token: who does not know it is a stranger.

    Raises
    ------
    ValueError
        When what an item tells of itself is too large.
    """
    data = json.dumps({"kind": _NAMES[type(message)], "password": password, **asdict(message)}).encode()
    if len(data) > MAX_EVENT_BYTES:
        raise ValueError(
            f"an event of {len(data)} bytes exceeds {MAX_EVENT_BYTES}: put arrays in the item, not in info"
        )
    return data


def decode(data: bytes, password: str) -> Message | None:
    """Return a message, or None where a stranger wrote it."""
    try:
        given: dict[str, Any] = json.loads(data[:MAX_EVENT_BYTES])
        if given.pop("password") != password:
            return None
        message = _KINDS[given.pop("kind")](**given)
        _check(given)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    # JSON made a list of it.
    return replace(message, key=tuple(message.key)) if isinstance(message, Sent) else message


def _check(given: dict[str, Any]) -> None:
    """Raise where a field is not of its type."""
    counts = [given[name] for name in _COUNTS if name in given]
    if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
        raise TypeError("a count is none")
    if not all(isinstance(given.get(name, ""), str) for name in _TEXTS) or given.get("state", "open") not in _STATES:
        raise TypeError("a session, checksum or state is none")
    if not isinstance(given.get("heard", False), bool):
        raise TypeError("what was heard is no yes or no")
    info, key = given.get("info", {}), given.get("key", [])
    if not all(isinstance(value, float | int | str) for value in info.values()):
        raise TypeError("info is no scalars")
    if not isinstance(key, list) or not all(isinstance(part, str) for part in key):
        raise TypeError("a key is none")
