"""ProxyStore's endpoints on this machine, each in a home as if on a host of its own; and a relay server."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tasks.messages import StoreSpec
from tests.integration.sites.conftest import free_ports, listens, running, until

LARGEST = 1_000_000


@dataclass(frozen=True)
class PeerEndpoint:
    """An endpoint that runs; ``PROXYSTORE_HOME=home`` makes it the one of a process."""

    uuid: str
    home: Path
    port: int
    process: subprocess.Popen[bytes]

    def n_objects(self) -> int:
        """How many objects lie in it, which it tells nobody: its database does."""
        database = self.home / "blobs.db"
        if not database.exists():
            return 0
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM blobs").fetchone()[0])

    def store(self, *others: PeerEndpoint) -> StoreSpec:
        """A store of this endpoint and others."""
        return StoreSpec("test", "endpoint", (("endpoints", ",".join(each.uuid for each in (self, *others))),))


def need_extra() -> None:
    """Skip a test where endpoints cannot be run."""
    pytest.importorskip("aiortc", reason="needs aiortc and others: pip install 'proxystore[endpoints]'")


def need_interface() -> None:
    """Skip a test where peers find no address for UDP: they take none of the loopback's."""
    found = [each for addresses in psutil.net_if_addrs().values() for each in addresses]
    if not any(each.family == socket.AF_INET and not each.address.startswith("127.") for each in found):
        pytest.skip("peers talk by UDP from an interface's address, and this machine has but its loopback")


@contextmanager
def relay(folder: Path) -> Iterator[int]:
    """Run a relay server; return its port."""
    (port,) = free_ports(1)
    with _command(folder / "relay.log", "proxystore-relay", "--host", "127.0.0.1", "--port", str(port)):
        until(lambda: listens(port), "relay server", folder)
        yield port


@contextmanager
def endpoint(folder: Path, name: str, relay_port: int | None = None) -> Iterator[PeerEndpoint]:
    """Run an endpoint, which finds others by a relay server, if there is one."""
    home = folder / name
    (port,) = free_ports(1)
    endpoint_id = configure(home, name, port, relay_port)
    words = ("proxystore-endpoint", "start", name, "--no-detach")
    with _command(folder / f"{name}.log", *words, home=home) as process:
        until(lambda: process.poll() is not None or listens(port), f"endpoint {name}", folder)
        assert process.poll() is None, (folder / f"{name}.log").read_text()
        yield PeerEndpoint(endpoint_id, home, port, process)


def configure(home: Path, name: str, port: int, relay_port: int | None = None) -> str:
    """Write what `proxystore-endpoint configure` does, but for loopback and without servers of the internet."""
    from proxystore.endpoint.config import (
        EndpointConfig,
        EndpointRelayConfig,
        EndpointStorageConfig,
        write_config,
    )

    address = None if relay_port is None else f"ws://127.0.0.1:{relay_port}"
    config = EndpointConfig(
        name=name,
        uuid=str(uuid.uuid4()),
        port=port,
        host="127.0.0.1",
        host_type="static",
        relay=EndpointRelayConfig(address=address, ice_servers=[]),
        storage=EndpointStorageConfig(database_path=str(home / "blobs.db"), max_object_size=LARGEST),
    )
    write_config(config, str(home / name))
    return config.uuid


@contextmanager
def _command(log: Path, name: str, *words: str, home: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ if home is None else os.environ | {"PROXYSTORE_HOME": str(home)}
    command = str(Path(sys.executable).parent / name)
    with log.open("wb") as out, running(command, *words, env=environment, stdout=out, stderr=out) as process:
        yield process
