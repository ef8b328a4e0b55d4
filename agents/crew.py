"""What the campaigns of a process share: executors at their sites, the task server before them, and its queues."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from parsl.config import Config
from parsl.executors.base import ParslExecutor

from agents import probing, server
from agents.queues import Queues, pipe_queues, redis_queues
from agents.state import Destination
from agents.supervisor import Server
from campaign.guardian import Guardian
from campaign.processes import reap
from tasks.bundle import run_bundle
from tasks.embed_coordinate import embed_coordinate
from tasks.equilibrate import equilibrate
from tasks.gather import gather
from tasks.glance import glance
from tasks.hook import run_hook
from tasks.infer import embed
from tasks.messages import Feed, Topic
from tasks.probe import probe
from tasks.simulate import begin_segment
from tasks.train import train
from tasks.transport import move

METHODS: dict[Topic, Callable[..., Any]] = {
    "equilibrate": equilibrate,
    "simulate": begin_segment,
    "infer": embed,
    "glance": glance,
    "coordinate": embed_coordinate,
    "train": train,
    "move": move,
    "hook": run_hook,
    "gather": gather,
}


class RedisServer(Server, Protocol):
    """A server that knows its bounds."""

    host: str
    port: int

    @property
    def pid(self) -> int | None:
        """Its process, where it is the campaign's own."""
        ...

    def free_bytes(self) -> int | None:
        """Return the memory it may still take; None where there is no bound."""
        ...


@dataclass(frozen=True, slots=True)
class Hands:
    """An executor at a site, with so many workers."""

    site: str
    executor: ParslExecutor
    slots: int


@dataclass(frozen=True, slots=True)
class Crew:
    """Who works for the campaigns of a process.

    Attributes
    ----------
    home
        Where Parsl logs: the run directory, or the folder of a sweep.
    idle_block_s
        Seconds without work after which a site gives a block back to its scheduler.
    earlier
        ``run_id`` of the processes before this one that were on this machine.
    guardian
        Ends what the main process leaves, should it be killed; started before anything else.
    pool, learning, host
        For segments (in the order of ``--simulate-site``), for inference and training, and on this machine for moves
        and hooks. Not started yet; they come to life in the task server's process.
    redis
        None where nothing uses Redis.
    feed, door
        Where batches of running segments are told of, and the socket that listens there if it is one of ours.
    closing
        Closed once its servers have ended.
    """

    run_id: str
    home: Path
    queue: Literal["pipe", "redis"]
    idle_block_s: float
    private_dir: Path
    guardian: Guardian
    pool: tuple[Hands, ...]
    learning: Hands
    host: Hands | None
    redis: RedisServer | None
    closing: ExitStack
    earlier: frozenset[str] = frozenset()
    feed: Feed | None = None
    door: socket.socket | None = None

    @property
    def executors(self) -> list[ParslExecutor]:
        """All executors."""
        host = [] if self.host is None else [self.host]
        return [hands.executor for hands in (*self.pool, self.learning, *host)]

    @property
    def segment_labels(self) -> tuple[str, ...]:
        """Labels of the executors of segments."""
        return tuple(hands.executor.label for hands in self.pool)


@dataclass(frozen=True, slots=True)
class Service:
    """What runs as long as the campaigns: queues, and the task server behind them."""

    crew: Crew
    queues: Queues
    task_server: server.SafeTaskServer
    attendance: server.Attendance

    def end(self) -> None:
        """End every process of the run but guardian and Redis server; a second call finds nothing to do."""
        if self.task_server.is_alive():
            server.stop(self.task_server, self.queues)
        redis = None if self.crew.redis is None else self.crew.redis.pid
        reap(self.crew.run_id, spare=[self.crew.guardian.pid, *([] if redis is None else [redis])])
        shutil.rmtree(self.crew.private_dir, ignore_errors=True)


@contextmanager
def served(crew: Crew, work: Iterable[tuple[Topic, Destination]]) -> Iterator[Service]:
    """Keep a task server running; no process of the run outlives this, nor the main process' death.

    Parameters
    ----------
    work
        What is done where.
    """
    queues = _queues(crew)
    attendance = server.Attendance(crew.segment_labels)
    task_server = server.SafeTaskServer(
        _methods(crew.executors, work), queues, _config(crew), crew.guardian.life_line, attendance
    )
    service = Service(crew, queues, task_server, attendance)
    # Forked before this process has threads, a database or a device open.
    task_server.start()
    try:
        yield service
    finally:
        service.end()


def _queues(crew: Crew) -> Queues:
    if crew.queue == "pipe":
        return pipe_queues()
    assert crew.redis is not None  # the settings ask for Redis, so the crew has one
    return redis_queues(crew.redis.host, crew.redis.port, crew.run_id, crew.earlier)


def _methods(
    executors: Sequence[ParslExecutor], work: Iterable[tuple[Topic, Destination]]
) -> list[tuple[str, Callable[..., Any], str]]:
    """Return ``(name, function, executor label)`` of each task; campaigns that share a place share its tasks."""
    done = {place.method: (partial(run_bundle, METHODS[topic]), place.executor) for topic, place in work}
    probes = [(probing.method_of(executor.label), probe, executor.label) for executor in executors]
    return [*((name, function, label) for name, (function, label) in done.items()), *probes]


def _config(crew: Crew) -> Config:
    return Config(
        executors=crew.executors,
        run_dir=str(crew.home / "logs" / "parsl"),
        retries=0,
        usage_tracking=0,
        initialize_logging=False,
        # Blocks that have nothing to do go back to their scheduler, while others of the same site work.
        strategy="htex_auto_scale",
        strategy_period=1,
        max_idletime=crew.idle_block_s,
    )
