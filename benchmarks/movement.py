"""Frames from producers to consumers: what waiting and moving cost by `tasks.stream`, and without it.

Blocked is a consumer's time from when production begins until it has ended, less what it moves and analyses. Beside
the stream stand the traditional way, in which a consumer begins when its producers have finished, and one that looks
every 100 ms whether a file is there. All take turns, with equal frames that take equally long to make and to analyse
(`--frame-s`, unless `--generate` or `--analyze` say otherwise); processes are up before the clock starts.

Then frames of several sizes are moved one at a time, checked, into the consumer's directory, or copied there as they
are when the consumer hears of them (`shutil.copyfile`, which checks nothing); both take turns. With bytes in ZeroMQ's
messages their way cannot be told from waiting: there, movement counts from the moment that the producer puts a frame.
Where bytes go through sockets (``zmq``, ``redis``), a plain connection stands beside that does nothing but send a
frame and write it where it lands: no way through a socket of this machine is faster, and through a server they go
twice.
Wanted: blocked 5 times less than traditionally over 10 frames, and movement at 0.6 of a raw copy from 1 MB on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Figure, Figures, Session, Wanted, interval, median, run
from sites import redis_server
from tasks.errors import TaskFailed
from tasks.stream import Bulk, Consumer, InDirectory, InMessage, Producer, StreamSpec
from tasks.stream import frames as builtin
from tasks.stream.frames import analyzed, function_named, generated
from tasks.stream.rank import Frame, Report, check, run_rank
from tasks.stream.settings import Settings, add_flags, make, settings_of
from tasks.stream.spec import LOOPBACK
from tasks.transport import pack, unpack

SIZES = (100_000, 1_000_000, 4_000_000, 16_000_000)
WAYS = ("stream", "traditional", "polling")

_POLLS_EVERY_S = 0.1
_STARTS_WITHIN_S = 60.0
_ENDS_WITHIN_S = 300.0

# A repeat moves this much, but has at least 10 and at most 40 frames.
_BYTES_PER_REPEAT = 200_000_000

# So that a frame is moved, and copied, while nothing else of ours runs.
_PAUSE_S = 0.03

_FRAME_VARIABLE = "WAYFINDER_FRAME_S"

# When a frame was sent, and its size.
_ANNOUNCED = struct.Struct("!dq")

_SPAWN = multiprocessing.get_context("spawn")


def generate(number: int, n_atoms: int, stream: int) -> np.ndarray:
    """Return a frame of the built-in generator, (n_atoms, 3) float32 in nm, after a fixed time."""
    with _lasting():
        return builtin.generate(number, n_atoms, stream)


def analyze(positions: np.ndarray) -> dict[str, float]:
    """Return the built-in analysis, after the same time."""
    with _lasting():
        return builtin.analyze(positions)


@contextmanager
def _lasting() -> Iterator[None]:
    until = time.monotonic() + float(os.environ[_FRAME_VARIABLE])
    yield
    time.sleep(max(0.0, until - time.monotonic()))


@dataclass(frozen=True, slots=True)
class Spent:
    """What consumers did with their time, in s, summed over frames and averaged over consumers."""

    blocked: float
    movement: float
    analysis: float
    whole: float


def measure(session: Session) -> Figures:
    """Return blocked times by way and their ratios; rates of movement and of a raw copy by size."""
    os.environ[_FRAME_VARIABLE] = str(session.options.frame_s)
    with _redis(session):
        produce, consume = (_settings(session, command) for command in ("produce", "consume"))
        for settings in (produce, consume):
            check(settings)
        figures = _waiting(session, produce, consume)
        for size in session.options.sizes or SIZES:
            figures |= _moving(session, produce, consume, size)
    return figures


@contextmanager
def _redis(session: Session) -> Iterator[None]:
    """Have a Redis server of our own, where one is needed and none was named."""
    if session.options.backend != "redis" or session.options.redisport:
        session.options.redisport = session.options.redisport or 6379
        yield
        return
    server = redis_server.start(None, session.folder / "redis.log")
    session.options.redishost, session.options.redisport = server.host, server.port
    try:
        yield
    finally:
        server.stop()


def _settings(session: Session, command: str) -> Settings:
    """Return settings of a command; directories that are not named are the benchmark's own."""
    options = argparse.Namespace(**vars(session.options), command=command)
    for name in ("producer_dir", "consumer_dir", "shared_dir"):
        setattr(options, name, getattr(options, name) or session.folder / name)
    settings = settings_of(options)
    make(settings.directories())
    return settings


# ---- waiting


def _waiting(session: Session, produce: Settings, consume: Settings) -> dict[str, Figure]:
    arms = {way: partial(_workflow, way, produce, consume) for way in WAYS}
    rounds = session.rounds("waiting", arms, 3 if session.quick else 10)
    figures = {f"blocked, {way}": interval((r[way].blocked for r in rounds), "s") for way in WAYS}
    ratios = {way: [r[way].blocked / r["stream"].blocked for r in rounds] for way in WAYS[1:]}
    # Fewer frames cannot save so much: the first one is waited for in any case.
    wanted = Wanted(at_least=5.0) if produce.num_frames >= 10 else None
    figures["blocked, traditional/stream"] = interval(ratios["traditional"], "ratio", wanted)
    figures["blocked, polling/stream"] = interval(ratios["polling"], "ratio")
    figures |= {f"whole, {way}": interval((r[way].whole for r in rounds), "s") for way in WAYS}
    figures["movement, stream"] = interval((1000 * r["stream"].movement for r in rounds), "ms")
    figures["analysis, stream"] = interval((r["stream"].analysis for r in rounds), "s")
    return figures


def _workflow(way: str, produce: Settings, consume: Settings) -> Spent:
    """Run producers and consumers to their end, each a process."""
    _empty(produce, consume)
    n = produce.producers + produce.consumers
    start, reports = _SPAWN.Barrier(n), _SPAWN.Queue()
    finished = [_SPAWN.Event() for _ in range(produce.producers)]
    targets = [(_be_producer, way, produce, rank) for rank in range(produce.producers)]
    targets += [(_be_consumer, way, consume, rank) for rank in range(produce.consumers)]
    processes = [_SPAWN.Process(target=be, args=(*about, start, finished, reports)) for be, *about in targets]
    try:
        for process in processes:
            process.start()
        told: list[Report | str] = [reports.get(timeout=_ENDS_WITHIN_S) for _ in processes]
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
    failed = [report for report in told if isinstance(report, str)]
    if failed:
        raise SystemExit("; ".join(failed))
    return _spent([report for report in told if isinstance(report, Report)], produce.num_frames * produce.producers)


def _spent(reports: list[Report], n_frames: int) -> Spent:
    began = min(report.began for report in reports)
    consumers = [report for report in reports if all("analysis" in frame.seconds for frame in report.frames)]
    assert sum(len(report.frames) for report in consumers) == n_frames
    per_consumer = []
    for report in consumers:
        movement = sum(frame.seconds["movement"] for frame in report.frames)
        analysis = sum(frame.seconds["analysis"] for frame in report.frames)
        whole = report.ended - began
        per_consumer.append((whole - movement - analysis, movement, analysis, whole))
    return Spent(*np.mean(per_consumer, axis=0))


def _be_producer(
    way: str, settings: Settings, rank: int, start: Barrier, finished: list[Event], reports: Queue[Report | str]
) -> None:
    report = Report(rank)
    function = function_named("--generate", settings.generate, os.getcwd())
    start.wait(_STARTS_WITHIN_S)
    try:
        if way == "stream":
            run_rank(settings, rank, report, _quiet)
        else:
            _produce_files(settings, rank, report, partial(generated, function))
    except TaskFailed as error:
        reports.put(f"producer {rank}: {error}")
        return
    finished[rank].set()
    reports.put(report)


def _produce_files(settings: Settings, rank: int, report: Report, make: Any) -> None:
    files = InDirectory(_from(settings))
    report.began = time.monotonic()
    for number in range(settings.num_frames):
        files.put(rank, number, pack(make(number, settings.num_atoms, rank)))
    report.ended = time.monotonic()
    report.frames.append(_frame(rank, 0, {}))


def _be_consumer(
    way: str, settings: Settings, rank: int, start: Barrier, finished: list[Event], reports: Queue[Report | str]
) -> None:
    report = Report(rank)
    function = function_named("--analyze", settings.analyze, os.getcwd())
    start.wait(_STARTS_WITHIN_S)
    try:
        if way == "stream":
            run_rank(settings, rank, report, _quiet)
        else:
            report.began = time.monotonic()
            _consume_files(way, settings, rank, report, partial(analyzed, function), finished)
    except TaskFailed as error:
        reports.put(f"consumer {rank}: {error}")
        return
    report.ended = time.monotonic()
    reports.put(report)


def _consume_files(way: str, settings: Settings, rank: int, report: Report, look: Any, finished: list[Event]) -> None:
    source, target = InDirectory(_from(settings)), None
    if settings.storage == "local":
        assert settings.consumer_dir is not None
        target = InDirectory(settings.consumer_dir)
    streams = settings.streams(rank)
    if way == "traditional":
        for stream in streams:
            finished[stream].wait(_ENDS_WITHIN_S)
    for number in range(settings.num_frames):
        for stream in streams:
            path = source.path(stream, number)
            while not path.exists():
                time.sleep(_POLLS_EVERY_S)
            began = time.perf_counter()
            if target is not None:
                place = target.path(stream, number)
                place.parent.mkdir(parents=True, exist_ok=True)
                path = Path(shutil.copyfile(path, place))
            data = path.read_bytes()
            moved = time.perf_counter()
            look(unpack(data), number)
            seconds = {"movement": moved - began, "analysis": time.perf_counter() - moved}
            report.frames.append(_frame(stream, number, seconds))


def _frame(stream: int, number: int, seconds: dict[str, float]) -> Frame:
    return Frame(stream, number, 0, seconds)


def _from(settings: Settings) -> Path:
    found = settings.shared_dir if settings.storage == "shared" else settings.producer_dir
    assert found is not None
    return found


def _quiet(line: str) -> None:
    """Print nothing."""


def _empty(produce: Settings, consume: Settings) -> None:
    """Remove frames of the last turn, or a consumer that looks for files would find them."""
    for folder in {_from(produce), consume.consumer_dir}:
        for group in folder.glob("group*") if folder is not None else ():
            shutil.rmtree(group)


# ---- moving


def _moving(session: Session, produce: Settings, consume: Settings, size: int) -> dict[str, Figure]:
    n = max(10, min(40, _BYTES_PER_REPEAT // size))
    arms = {way: partial(_move, way, produce, consume, size, n) for way in ("stream", "raw")}
    through_sockets = produce.backend in ("zmq", "redis") and produce.storage == "local"
    if through_sockets:
        arms["socket"] = partial(_move_by_socket, consume, size, n)
    rounds = session.rounds(f"moving {_label(size)}", arms, 3 if session.quick else 10)
    moved, copied = (np.array([r[way].seconds for r in rounds]) for way in ("stream", "raw"))
    wanted = Wanted(at_least=0.6) if size >= 1_000_000 else None
    label = _label(size)
    least = np.array([r["socket"].seconds for r in rounds]) if through_sockets else None
    beside = {} if least is None else _beside_a_socket(label, moved, copied, least)
    return {
        f"movement {label}": interval(size / 1e6 / moved, "MB/s"),
        f"raw copy {label}": interval(size / 1e6 / copied, "MB/s"),
        f"movement/raw copy {label}": interval(copied / moved, "ratio", wanted),
        f"put -> landed {label}": interval((1000 * r["stream"].since_put for r in rounds), "ms"),
        **beside,
    }


def _beside_a_socket(label: str, moved: np.ndarray, copied: np.ndarray, least: np.ndarray) -> dict[str, Figure]:
    return {
        f"plain socket/raw copy {label}": interval(copied / least, "ratio, at most"),
        f"movement/plain socket {label}": interval(least / moved, "ratio"),
    }


@dataclass(frozen=True, slots=True)
class Moved:
    """Medians over frames, in s: of moving one, and from its producer's put until it had landed."""

    seconds: float
    since_put: float


def _move(way: str, produce: Settings, consume: Settings, size: int, n: int) -> Moved:
    """Have frames come one at a time, moved by the stream, or copied when a stream of their names tells of them.

    Files stay to the end: one that is removed would leave warm pages for the next.
    """
    _empty(produce, consume)
    produce, consume = (replace(each, producers=1, consumers=1) for each in (produce, consume))
    process = _SPAWN.Process(target=_put_frames, args=(way, produce, size, n))
    process.start()
    try:
        rows = _take_frames(way, consume, InDirectory(_from(produce)))
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        _empty(produce, consume)
    assert len(rows) == n
    return Moved(median([row[0] for row in rows]), median([row[1] for row in rows]))


def _move_by_socket(consume: Settings, size: int, n: int) -> Moved:
    """Have frames come by a plain connection, and write each where it lands; nothing is checked."""
    _empty(consume, consume)
    assert consume.consumer_dir is not None
    landing = InDirectory(consume.consumer_dir)
    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(_STARTS_WITHIN_S)
        process = _SPAWN.Process(target=_send_frames, args=(server.getsockname()[1], size, n))
        process.start()
        try:
            with server.accept()[0] as connection:
                rows = [_receive_frame(connection, landing, number) for number in range(n)]
        finally:
            process.join(10)
            process.kill()
            _empty(consume, consume)
    return Moved(median(rows), median(rows))


def _receive_frame(connection: socket.socket, landing: InDirectory, number: int) -> float:
    """Return the seconds from when a frame was sent until it had landed."""
    put, n_bytes = _ANNOUNCED.unpack(_received(connection, _ANNOUNCED.size))
    landing.put(0, number, _received(connection, n_bytes))
    return float(time.monotonic() - put)


def _received(connection: socket.socket, n_bytes: int) -> memoryview:
    data = memoryview(bytearray(n_bytes))
    left = data
    while len(left):
        n_read = connection.recv_into(left)
        if n_read == 0:
            raise SystemExit("the process that sends frames ended")
        left = left[n_read:]
    return data


def _send_frames(port: int, size: int, n: int) -> None:
    data = pack({"positions": np.random.default_rng(0).random((size // 12, 3), dtype=np.float32)})
    with socket.create_connection((LOOPBACK, port), _STARTS_WITHIN_S) as connection:
        for _ in range(n):
            connection.sendall(_ANNOUNCED.pack(time.monotonic(), len(data)))
            connection.sendall(data)
            time.sleep(_PAUSE_S)


def _take_frames(way: str, settings: Settings, source: InDirectory) -> list[tuple[float, float]]:
    rows = []
    assert settings.consumer_dir is not None
    directory = settings.consumer_dir if way == "stream" else None
    copies = settings.consumer_dir / "group-raw"
    copies.mkdir(parents=True)
    with Consumer(_spec(way, settings), [0], _bulk(way, settings), directory) as consumer:
        for item in consumer:
            since_put_s = time.monotonic() - float(item.info["put"])
            began = time.perf_counter()
            if way == "raw":
                shutil.copyfile(source.path(0, item.number), copies / str(item.number))
                rows.append((time.perf_counter() - began, since_put_s))
            else:
                rows.append((since_put_s if _is_in_messages(settings) else item.moved_s, since_put_s))
    return rows


def _put_frames(way: str, settings: Settings, size: int, n: int) -> None:
    files, bulk = InDirectory(_from(settings)), _bulk(way, settings)
    arrays = {"positions": np.random.default_rng(0).random((size // 12, 3), dtype=np.float32)}
    with Producer(_spec(way, settings), 0, bulk) as producer:
        for number in range(n):
            data = pack(arrays)
            if not isinstance(bulk, InDirectory):
                files.put(0, number, data)
            told = data if way == "stream" else b""
            producer.put_packed(told, {"put": time.monotonic()})
            time.sleep(_PAUSE_S)


def _spec(way: str, settings: Settings) -> StreamSpec:
    return settings.spec(0) if way == "stream" else replace(settings, backend="zmq").spec(0)


def _bulk(way: str, settings: Settings) -> Bulk:
    return settings.bulk(0) if way == "stream" else InMessage()


def _is_in_messages(settings: Settings) -> bool:
    return settings.backend == "zmq" and settings.storage == "local"


def _label(size: int) -> str:
    return f"{size // 1_000_000} MB" if size >= 1_000_000 else f"{size // 1000} kB"


def _options(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.set_defaults(
        generate="benchmarks.movement:generate", analyze="benchmarks.movement:analyze", redisport=0, namespace="bench"
    )
    parser.add_argument(
        "--frame-s", type=float, default=0.25, metavar="S", help="to make and to analyse a frame (default: 0.25)"
    )
    parser.add_argument("--sizes", type=int, nargs="+", metavar="BYTES", help="instead of 100 kB to 16 MB")


if __name__ == "__main__":
    sys.exit(run("movement", __doc__, measure, _options))
