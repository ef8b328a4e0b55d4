"""One producer or one consumer of frames, and what it took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tasks import transport
from tasks.errors import BadInput, StreamBroken, Unreachable
from tasks.stream.bulk import InDirectory
from tasks.stream.ends import Consumer, Item, Producer
from tasks.stream.frames import analyzed, function_named, generated
from tasks.stream.settings import Settings
from tasks.transport import pack

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame at one end.

    Attributes
    ----------
    seconds
        Of a producer ``production``, ``writing`` (into its directory), ``waiting`` (until the consumer has room) and
        ``movement`` (into what carries it there); of a consumer ``waiting``, ``movement``, ``analysis``, and
        ``since_made``, which compares clocks of two hosts if they are on two.
    """

    stream: int
    number: int
    bytes: int
    seconds: dict[str, float]
    result: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """What one rank did.

    Attributes
    ----------
    began, ended
        By the machine's monotonic clock: before the first frame, and after the stream was closed.
    closing_s
        After the last frame: how long a producer waited for the consumer to take the rest, or a consumer for the
        producers' word that this was all.
    """

    rank: int
    began: float = 0.0
    ended: float = 0.0
    closing_s: float = 0.0
    frames: list[Frame] = field(default_factory=list)
    lost: int = 0
    damaged: int = 0
    strangers: int = 0
    error: str | None = None


Tell = Callable[[Frame], None]


def run_rank(settings: Settings, rank: int, report: Report, say: Say) -> None:
    """Be one of the producers or consumers; what was done so far is in the report whatever ends it.

    Raises
    ------
    BadInput
        When a function, an address or a server cannot be used.
    TaskFailed
        When the other end is gone, a store fails, frames are missing, or the user's function fails.
    """
    run = _produce if settings.command == "produce" else _consume
    last = [0.0]

    def tell(frame: Frame) -> None:
        report.frames.append(frame)
        say(_line_of(frame))
        last[0] = time.monotonic()

    try:
        run(settings, rank, report, tell)
    finally:
        report.ended = time.monotonic()
        report.closing_s = report.ended - last[0] if report.frames else 0.0


def check(settings: Settings) -> None:
    """Refuse what no rank could work with, before any is started.

    Raises
    ------
    BadInput
        When a function or a server cannot be used.
    """
    flag = "generate" if settings.command == "produce" else "analyze"
    function_named(f"--{flag}", getattr(settings, flag), os.getcwd())
    if settings.backend == "redis":
        _check_redis(settings)
    store = settings.store(0)
    if store is not None:
        try:
            transport.keys(store)
            transport.open_store(store)
        except (Unreachable, OSError) as error:
            raise BadInput(f"--backend {settings.backend} cannot be used: {error}") from error


def _check_redis(settings: Settings) -> None:
    from redis import Redis, RedisError

    client = Redis(
        host=settings.redishost,
        port=transport.port_here(str(settings.redisport)),
        password=os.environ.get(transport.PASSWORD_VARIABLE),
        socket_timeout=5,
    )
    try:
        client.ping()
    except (RedisError, OSError) as error:
        raise BadInput(
            f"no Redis server answers at {settings.redishost}:{settings.redisport} ({error}): start it, name another "
            f"with --redishost and --redisport, or set {transport.PASSWORD_VARIABLE}"
        ) from error
    finally:
        client.close()


def _produce(settings: Settings, rank: int, report: Report, tell: Tell) -> None:
    function = function_named("--generate", settings.generate, os.getcwd())
    consumer = rank % settings.consumers
    bulk = settings.bulk(consumer)
    directory = settings.producer_dir if settings.storage == "local" else settings.shared_dir
    assert directory is not None
    managed = InDirectory(directory)
    with Producer(settings.spec(consumer), rank, bulk) as producer:
        report.began = time.monotonic()
        for number in range(settings.num_frames):
            began = time.perf_counter()
            arrays = generated(function, number, settings.num_atoms, rank)
            generated_at = time.perf_counter()
            data = pack(arrays)
            # In the directory first: it is the product, whatever becomes of its way to the consumer.
            if not isinstance(bulk, InDirectory):
                managed.put(rank, number, data)
            writing_s = time.perf_counter() - generated_at
            put = producer.put_packed(data, {"made": time.time()})
            seconds = {"production": generated_at - began, "writing": writing_s, "waiting": put.blocked_s}
            if isinstance(bulk, InDirectory):
                seconds |= {"writing": writing_s + put.handed_s, "movement": 0.0}
            else:
                seconds["movement"] = put.handed_s
            tell(Frame(rank, number, put.n_bytes, seconds))


def _consume(settings: Settings, rank: int, report: Report, tell: Tell) -> None:
    function = function_named("--analyze", settings.analyze, os.getcwd())
    streams = settings.streams(rank)
    directory = settings.consumer_dir if settings.storage == "local" else None
    consumer = Consumer(settings.spec(rank), streams, settings.bulk(rank), directory)
    try:
        report.began = time.monotonic()
        for item in consumer:
            tell(_analyzed(function, item))
        _check_counts(settings, rank, consumer)
    finally:
        report.lost, report.damaged, report.strangers = consumer.lost, consumer.damaged, consumer.strangers
        consumer.close()
        _clear(settings, rank)


def _analyzed(function: Callable[..., Any], item: Item) -> Frame:
    here = time.time()
    began = time.perf_counter()
    result = analyzed(function, item.arrays(), item.number)
    seconds = {"waiting": item.waited_s, "movement": item.moved_s, "analysis": time.perf_counter() - began}
    made_at = item.info.get("made")
    if isinstance(made_at, float):
        seconds["since_made"] = here - made_at
    return Frame(item.stream, item.number, len(item.data), seconds, result)


def _check_counts(settings: Settings, rank: int, consumer: Consumer) -> None:
    wanted = settings.num_frames * len(settings.streams(rank))
    if consumer.lost or consumer.damaged or consumer.taken != wanted:
        raise StreamBroken(
            f"consumer {rank} has {consumer.taken} frames of {wanted}: {consumer.lost} were lost on their way and "
            f"{consumer.damaged} were damaged; start both again, with the same --num-frames"
        )


def _clear(settings: Settings, rank: int) -> None:
    """Remove what producers that were killed left in the store."""
    store = settings.store(rank)
    if store is not None:
        try:
            transport.clear(store)
        except Unreachable:
            return  # what ended the stream says it, and a server that is gone holds nothing


def _line_of(frame: Frame) -> str:
    times = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in frame.seconds.items())
    results = "".join(f", {name} {value:g}" for name, value in frame.result.items())
    return f"stream {frame.stream} frame {frame.number}: {frame.bytes} bytes, {times}{results}"
