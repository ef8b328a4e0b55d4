"""How a producer finds a consumer that listens: by a file in a directory that both see.

The file holds the address and a token, for its owner's eyes: who does not know the token is not listened to.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.errors import BadInput
from tasks.transport import TOKEN_VARIABLE

_ANSWERS_S = 1.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where a consumer listens."""

    host: str
    port: int
    token: str

    @property
    def url(self) -> str:
        """The address as ZeroMQ has it."""
        return tcp(self.host, self.port)


def tcp(host: str, port: int | str) -> str:
    """Return an address as ZeroMQ has it."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def folder_of_this_user() -> Path:
    """Return a directory of this machine that nobody else can write to; made if it is not there.

    Raises
    ------
    BadInput
        When somebody else made it.
    """
    folder = Path(tempfile.gettempdir()) / f"wayfinder-streams-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077 or folder.is_symlink():
        raise BadInput(f"{folder} can be written to by others: remove it, or name a --shared-dir")
    return folder


def own_token() -> str:
    """Return the token in the environment, or none."""
    return os.environ.get(TOKEN_VARIABLE, "")


def fresh_token() -> str:
    """Return the token in the environment, or one that nobody can guess."""
    return own_token() or secrets.token_hex(16)


def publish(path: Path, meeting: Meeting) -> None:
    """Write where a consumer listens, for its owner's eyes.

    Raises
    ------
    BadInput
        When another consumer listens where the file says.
    """
    there = look(path)
    if there is not None and _answers(there):
        raise BadInput(
            f"a consumer listens at {there.host}:{there.port} already, as {path} says: choose another --namespace"
        )
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(meeting), file)
    os.replace(part, path)


def look(path: Path) -> Meeting | None:
    """Return where a consumer listens, if one has told."""
    try:
        given = json.loads(path.read_bytes())
        return Meeting(str(given["host"]), int(given["port"]), str(given["token"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def withdraw(path: Path, meeting: Meeting) -> None:
    """Remove the file, if it is still this consumer's."""
    if look(path) == meeting:
        path.unlink(missing_ok=True)


def _answers(meeting: Meeting) -> bool:
    try:
        socket.create_connection((meeting.host, meeting.port), _ANSWERS_S).close()
    except OSError:
        return False
    return True
