"""What it costs to bring an array to a task: by file, by Redis, inline, and by Colmena's automatic proxies.

Measured is the time from an array in this process to the answer of a warm task that has read it, through Colmena's
queues and the campaign's task server. Beside it stand a bare put and get of as many bytes with ProxyStore's file
connector in one process, and a task without data. All ways take turns. Wanted: a file within 1.5 times the bare put
and get at 10 MB, and 2.3 times at 100 MB. Inline messages hold 8 MB at most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from proxystore.connectors.file import FileConnector
from proxystore.store import register_store
from proxystore.store.base import Store

from agents.queues import CountedPipes
from benchmarks import remote
from benchmarks.harness import Figure, Figures, Session, Wanted, interval, median, run
from benchmarks.service import call, colmena_worker
from sites import redis_server
from tasks.messages import StoreSpec
from tasks.transport import MAX_INLINE_BYTES, evict, ship

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
WANTED = {10_000_000: Wanted(at_most=1.5), 100_000_000: Wanted(at_most=2.3)}

# A repeat moves this much each way, but has at least 3 and at most 30 turns.
_BYTES_PER_REPEAT = 100_000_000


def measure(session: Session) -> Figures:
    """Return milliseconds by way and size, and the file's ratio to a bare put and get."""
    automatic = Store("automatic", FileConnector(str(session.folder / "automatic"), clear=False))
    register_store(automatic)
    redis = redis_server.start(None, session.folder / "redis.log")
    try:
        with colmena_worker(
            session.folder,
            [remote.nothing, remote.count_referred, remote.count_given],
            topics=("task", "automatic"),
            proxystore_name={"automatic": automatic.name},
            proxystore_threshold=1000,
        ) as queues:
            stores = {
                "file": StoreSpec("bench-file", "file", (("store_dir", str(session.folder / "file")),)),
                "redis": StoreSpec("bench-redis", "redis", (("hostname", redis.host), ("port", str(redis.port)))),
                "inline": StoreSpec("bench-inline", "inline"),
            }
            bare = FileConnector(str(session.folder / "bare"), clear=False)
            figures: dict[str, Figure] = {}
            for size in session.options.sizes or SIZES:
                figures |= _measure_size(session, queues, stores, bare, size)
            return figures
    finally:
        redis.stop()


def _measure_size(
    session: Session, queues: CountedPipes, stores: dict[str, StoreSpec], bare: FileConnector, size: int
) -> dict[str, Figure]:
    array = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    ways: dict[str, Callable[[], float]] = {
        "bare": lambda: _put_and_get(bare, array),
        "empty": lambda: call(queues, "nothing")[0],
        "automatic": lambda: _automatic(session.folder / "automatic", queues, array),
    }
    for name, store in stores.items():
        if store.kind != "inline" or size <= MAX_INLINE_BYTES // 2:
            ways[name] = partial(_by_store, queues, store, array)
    for way in ways.values():
        way()  # opens stores and connections
    turns = max(3, min(30, _BYTES_PER_REPEAT // size))
    arms = {name: partial(_median_of, way, turns) for name, way in ways.items()}
    rounds = session.rounds(_label(size), arms, 3 if session.quick else 10)
    figures = {f"{name} {_label(size)}": interval((1000 * r[name] for r in rounds), "ms") for name in ways}
    ratios = (r["file"] / r["bare"] for r in rounds)
    return figures | {f"file/bare {_label(size)}": interval(ratios, "ratio", WANTED.get(size))}


def _median_of(way: Callable[[], float], turns: int) -> float:
    return median([way() for _ in range(turns)])


def _by_store(queues: CountedPipes, store: StoreSpec, array: np.ndarray) -> float:
    began = time.perf_counter()
    ref = ship({"array": array}, store)
    _, n_bytes = call(queues, "count_referred", ref)
    seconds = time.perf_counter() - began
    evict(ref)
    assert n_bytes == array.nbytes
    return seconds


def _automatic(folder: Path, queues: CountedPipes, array: np.ndarray) -> float:
    seconds, n_bytes = call(queues, "count_given", array, topic="automatic")
    for left in folder.iterdir():  # nobody evicts automatic proxies
        left.unlink()
    assert n_bytes == array.nbytes
    return seconds


def _put_and_get(connector: FileConnector, array: np.ndarray) -> float:
    data = array.tobytes()
    began = time.perf_counter()
    key = connector.put(data)
    connector.get(key)
    seconds = time.perf_counter() - began
    connector.evict(key)
    return seconds


def _label(size: int) -> str:
    return f"{size // 1_000_000} MB" if size >= 1_000_000 else f"{size // 1000} kB"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", metavar="BYTES", help="instead of 10 kB to 100 MB")


if __name__ == "__main__":
    sys.exit(run("transport", __doc__, measure, _options))
