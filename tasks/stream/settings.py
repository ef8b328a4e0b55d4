"""What a producer or a consumer is told on the command line, and what follows from it."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tasks.errors import BadInput
from tasks.messages import StoreSpec
from tasks.stream.bulk import Bulk, InDirectory, InMessage, InStore
from tasks.stream.rendezvous import folder_of_this_user
from tasks.stream.spec import LOOPBACK, StreamSpec, is_namespace

BACKENDS = ("file", "redis", "zmq", "endpoint")

_PORT = re.compile(r"[0-9]{1,5}")
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Settings:
    """Flags of ``python -m tasks.stream``, known to make sense."""

    command: str
    num_frames: int
    num_atoms: int
    producers: int
    consumers: int
    storage: str
    backend: str
    namespace: str
    producer_dir: Path | None
    consumer_dir: Path | None
    shared_dir: Path | None
    generate: str
    analyze: str
    address: str | None
    redishost: str
    redisport: int
    ps_endpoints: str | None
    ahead: int
    lease_s: float
    wait_s: float

    @property
    def ranks(self) -> int:
        """How many producers or consumers this command is."""
        return self.producers if self.command == "produce" else self.consumers

    def streams(self, consumer: int) -> list[int]:
        """Return the producers of a consumer: they are dealt out in turn."""
        return list(range(consumer, self.producers, self.consumers))

    def spec(self, consumer: int) -> StreamSpec:
        """Return where a consumer is met."""
        bounds = (self.ahead, self.lease_s, self.wait_s)
        if self.backend == "redis":
            server = (("hostname", self.redishost), ("port", str(self.redisport)))
            return StreamSpec(self.namespace, "redis", server, consumer, *bounds)
        host, port = parse_address(self.address or LOOPBACK)
        place = ("port", str(port + consumer)) if port else ("folder", str(self.shared_dir or folder_of_this_user()))
        return StreamSpec(self.namespace, "zmq", (("host", host), place), consumer, *bounds)

    def store(self, consumer: int) -> StoreSpec | None:
        """Return the store that a consumer's frames pass through, if there is one."""
        name = f"{self.namespace}.{consumer}.bulk"
        if self.storage == "shared" or self.backend in ("file", "zmq"):
            return None
        if self.backend == "redis":
            return StoreSpec(name, "redis", (("hostname", self.redishost), ("port", str(self.redisport))))
        assert self.ps_endpoints is not None
        return StoreSpec(name, "endpoint", (("endpoints", self.ps_endpoints),))

    def bulk(self, consumer: int) -> Bulk:
        """Return where a consumer's frames are between the two."""
        store = self.store(consumer)
        if store is not None:
            return InStore(store)
        if self.storage == "local" and self.backend == "zmq":
            return InMessage()
        directory = self.shared_dir if self.storage == "shared" else self.producer_dir
        assert directory is not None
        return InDirectory(directory)

    def directories(self) -> list[Path]:
        """Return the directories that this command writes to."""
        if self.storage == "shared":
            own = self.shared_dir
        else:
            own = self.producer_dir if self.command == "produce" else self.consumer_dir
        return [path for path in {own, self.shared_dir} if path is not None]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of both commands."""
    add = parser.add_argument
    add("--num-frames", type=int, default=10, metavar="N", help="frames of each producer (default: 10)")
    add("--num-atoms", type=int, default=200, metavar="N", help="atoms of a frame (default: 200)")
    add("--producers", type=int, default=1, metavar="N", help="how many, each with a folder group{k} (default: 1)")
    add(
        "--consumers",
        type=int,
        default=1,
        metavar="N",
        help="how many; producer k is of consumer k mod N (default: 1)",
    )
    add(
        "--storage",
        choices=("local", "shared"),
        default="local",
        help="local: frames are moved to the consumer's directory; shared: it only waits for those in --shared-dir",
    )
    add("--producer-dir", type=Path, metavar="DIR", help="where producers write frames, with --storage local")
    add("--consumer-dir", type=Path, metavar="DIR", help="where consumers have them, with --storage local")
    add("--shared-dir", type=Path, metavar="DIR", help="a directory that both see; they also meet there")
    add("--namespace", default="wayfinder", help="name by which both find each other (default: wayfinder)")
    add(
        "--backend",
        choices=BACKENDS,
        default="file",
        help="how frames move: file (directory to directory), redis, zmq (in messages), endpoint (ProxyStore's); "
        "events go through Redis with redis, else through ZeroMQ (default: file)",
    )
    add(
        "--generate",
        default="tasks.stream.frames:generate",
        metavar="M:F",
        help="f(number, n_atoms, stream) -> positions (n_atoms, 3) in nm, or named arrays (default: a random chain)",
    )
    add(
        "--analyze",
        default="tasks.stream.frames:analyze",
        metavar="M:F",
        help="f(positions) -> a number, named numbers or None (default: radius of gyration)",
    )
    add(
        "--address",
        metavar="HOST[:PORT]",
        help="where consumers listen for ZeroMQ (default: 127.0.0.1, a port of the kernel's choice, told in a file). "
        "With a port producers need no such file: consumer k listens at PORT + k, through a tunnel if you make one",
    )
    add("--redishost", default="127.0.0.1", metavar="HOST", help="of --backend redis (default: 127.0.0.1)")
    add("--redisport", type=int, default=6379, metavar="PORT", help="of --backend redis (default: 6379)")
    add("--ps-endpoints", metavar="UUID,...", help="of --backend endpoint")
    add("--ahead", type=int, default=16, metavar="N", help="frames a producer may be ahead (default: 16)")
    add("--lease-s", type=float, default=10.0, metavar="S", help="silence after which an end is gone (default: 10)")
    add("--wait-s", type=float, default=300.0, metavar="S", help="bound on each wait for the other (default: 300)")


def settings_of(options: argparse.Namespace) -> Settings:
    """Return settings of parsed flags.

    Raises
    ------
    BadInput
        When they make no sense.
    """
    given = {name: getattr(options, name) for name in Settings.__dataclass_fields__}
    settings = Settings(**given)
    _check_numbers(settings)
    _check_backend(settings)
    _check_directories(settings)
    return settings


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port, 0 where none is named.

    Raises
    ------
    BadInput
        When it is none.
    """
    host, colon, port = text.rpartition(":") if text.count(":") == 1 or "]:" in text else (text, "", "0")
    if not host or not _PORT.fullmatch(port) or int(port) > _HIGHEST_PORT or (colon and int(port) == 0):
        raise BadInput(f"--address {text} is none: write HOST or HOST:PORT, such as 127.0.0.1:7711")
    return host.strip("[]"), int(port)


def _check_numbers(settings: Settings) -> None:
    for name in ("num_frames", "num_atoms", "producers", "consumers", "ahead"):
        if getattr(settings, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(settings, name)} is too few: give at least 1")
    for name in ("lease_s", "wait_s"):
        if not 0.1 <= getattr(settings, name) <= 86_400:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(settings, name):g} is no bound: give 0.1 to 86400 s")
    if settings.consumers > settings.producers:
        raise BadInput(
            f"--consumers {settings.consumers} would leave some without any of the {settings.producers} producers: "
            f"give at most {settings.producers}, or more --producers, and the same to both commands"
        )


def _check_backend(settings: Settings) -> None:
    if not is_namespace(settings.namespace):
        raise BadInput(f"--namespace {settings.namespace!r} is no name: use up to 100 letters, digits, - and _")
    if settings.address is not None:
        _, port = parse_address(settings.address)
        if settings.backend == "redis":
            raise BadInput(f"--address {settings.address} is of ZeroMQ: with --backend redis give --redishost")
        if port + settings.consumers - 1 > _HIGHEST_PORT:
            raise BadInput(
                f"--address {settings.address} leaves no ports for {settings.consumers} consumers: lower it"
            )
    if not 1 <= settings.redisport <= _HIGHEST_PORT:
        raise BadInput(f"--redisport {settings.redisport} is no port: give 1 to {_HIGHEST_PORT}")
    if settings.backend == "endpoint" and settings.storage == "local":
        _check_endpoints(settings.ps_endpoints)


def _check_endpoints(named: str | None) -> None:
    if named is None:
        raise BadInput("--backend endpoint needs ProxyStore's endpoints: name them with --ps-endpoints UUID,UUID")
    for each in named.split(","):
        try:
            UUID(each)
        except ValueError:
            raise BadInput(f"--ps-endpoints {each} is no UUID: see `proxystore-endpoint list`") from None


def _check_directories(settings: Settings) -> None:
    needed = {"shared_dir"} if settings.storage == "shared" else set()
    if settings.storage == "local":
        needed = {"producer_dir"} if settings.command == "produce" else {"consumer_dir"}
        needed |= {"producer_dir"} if settings.backend == "file" else set()
    for name in sorted(needed):
        if getattr(settings, name) is None:
            raise BadInput(
                f"--storage {settings.storage} --backend {settings.backend} needs a directory: give "
                f"--{name.replace('_', '-')} DIR"
            )
    if settings.storage == "local" and settings.command == "consume" and settings.backend == "file":
        assert settings.consumer_dir is not None
        assert settings.producer_dir is not None
        if settings.consumer_dir.resolve() == settings.producer_dir.resolve():
            raise BadInput(
                f"--consumer-dir {settings.consumer_dir} is the producers' own: name another, or use --storage shared"
            )
    for path in settings.directories():
        _check_writable(path)


def _check_writable(path: Path) -> None:
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"directory {path} cannot be written to: {there} is not yours to write in; name another")


def make(directories: list[Path]) -> list[Path]:
    """Make directories; return those that were not there before, inner ones first.

    Raises
    ------
    BadInput
        When one cannot be made.
    """
    new: list[Path] = []
    for path in directories:
        missing = [each for each in (path, *path.parents) if not each.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remove_empty(new)
            raise BadInput(f"directory {path} cannot be made ({error}): name another") from error
        new += missing
    return new


def remove_empty(directories: list[Path]) -> None:
    """Remove those directories in which nothing is: the input was bad after all."""
    for path in directories:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
