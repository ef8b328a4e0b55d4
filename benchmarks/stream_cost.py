"""What it adds to a segment's CPU time to show its frames.

Dynamics take 10 % more or less CPU time from one second to the next on a machine that is shared; what is added is a
few per cent. So it is not the difference of two segments: what the segment's thread spends on its audience is timed
by itself, and all other threads of the process, of which there are none without an audience, count as added.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import numpy as np

from agents.feed import FeedInlet
from agents.state import Receipt
from benchmarks.harness import ROOT, Figure, Session, Wanted, interval, median
from campaign.timing import lone_segment
from tasks import simulate
from tasks.announce import announced
from tasks.imd_protocol import HEADER, Header
from tasks.live import Audience
from tasks.messages import Dynamics, Feed, SegmentSpec, StoreSpec, Watch
from tasks.stream.spec import LOOPBACK
from tasks.systems import named_system, prepare
from tasks.transport import TOKEN_VARIABLE, evict

FRAME_STEPS: Final = 62  # of 4 fs: 0.248 ps
# What is set up and taken down for each segment weighs more in a short one: 20 and 100 ps.
LENGTHS: Final = (80, 400)

_attempts = count(1)

_SPAWN = multiprocessing.get_context("spawn")
_STARTS_WITHIN_S: Final = 60.0


def figures(session: Session) -> dict[str, Figure]:
    """Return what is added, in per cent of the CPU time of a segment that nobody looks at."""
    (session.folder / "trajectories").mkdir()
    found: dict[str, Figure] = {}
    for n_frames in LENGTHS[:1] if session.quick else LENGTHS:
        found |= _of_length(session, n_frames)
    return found


def _of_length(session: Session, n_frames: int) -> dict[str, Figure]:
    n_repeats = session.options.repeats or (3 if session.quick else 10)
    store = StoreSpec("cost", "file", (("store_dir", str(session.folder / "cost")),))
    prepared = prepare(named_system("alanine-dipeptide", platform="Reference"))
    dynamics = Dynamics(n_frames * FRAME_STEPS, FRAME_STEPS, 0.004, 300.0, 1.0, "Reference")
    spec = lone_segment(prepared, dynamics, store, session.folder)
    with _listening(session.folder, store) as feed:
        watches = {
            "nobody": None,
            "a function": Watch(1, True, f"{__name__}:look", str(ROOT), 60.0),
            "IMD, no client": Watch(1, True, imd_host=LOOPBACK),
            "IMD, a client": Watch(1, True, imd_host=LOOPBACK),
            "learning, 10 batches": Watch(n_frames // 10, True, feed=feed),
            "learning, each frame": Watch(1, True, feed=feed, when_slow="wait"),
        }
        arms = {
            name: partial(_cost, replace(spec, watch=watch, segment_id=number), name)
            for number, (name, watch) in enumerate(watches.items())
        }
        for arm in arms.values():
            arm()  # warm
        rounds = session.rounds("cost", arms, n_repeats)
    simulated_ps = spec.dynamics.segment_ps
    length = f"{simulated_ps:.0f} ps"
    bare = [1000 * each["nobody"].dynamics_s / simulated_ps for each in rounds]
    found = {f"cost, {length}, nobody looks": interval(bare, "CPU ms/ps")}
    for name in list(watches)[1:]:
        added = (1e5 * each[name].added_s / simulated_ps / median(bare) for each in rounds)
        found[f"cost, {length}, {name}"] = interval(
            added, "% more", Wanted(at_most=1.0 if "no client" in name else 5.0)
        )
    return found


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of a segment: for itself, and for its audience."""

    dynamics_s: float
    added_s: float


class Metered(Audience):
    """An audience that counts the CPU seconds that the segment's own thread spends on it."""

    spent_s = 0.0

    def __init__(self, *given: Any, **named: Any) -> None:
        with _spent():
            super().__init__(*given, **named)

    def see(self, positions: np.ndarray, boxes: np.ndarray | None) -> None:
        """Show the newest frame."""
        with _spent():
            super().see(positions, boxes)

    def leave(self) -> None:
        """Let go of clients."""
        with _spent():
            super().leave()


@contextmanager
def _spent() -> Iterator[None]:
    began = time.thread_time()
    try:
        yield
    finally:
        Metered.spent_s += time.thread_time() - began


def look(frames: object, times_ps: object, box: object) -> dict[str, float]:
    """Return nothing of interest: what it costs is to be called."""
    return {}


def _cost(spec: SegmentSpec, name: str) -> Cost:
    """Return what a segment takes."""
    simulate.Audience = Metered  # type: ignore[attr-defined]
    Metered.spent_s = 0.0
    with _client(spec.run_dir or "") if name == "IMD, a client" else nullcontext():
        process, thread = time.process_time(), time.thread_time()
        # Another attempt each time, as its stream is another.
        result = simulate.run_segment(replace(spec, attempt=next(_attempts)))
        ours = time.thread_time() - thread
        others = time.process_time() - process - ours
    for ref in (result.frames, result.end):
        evict(ref)
    return Cost(ours - Metered.spent_s, others + Metered.spent_s)


@contextmanager
def _client(run_dir: str) -> Iterator[None]:
    """Have a process read all that a segment's server sends."""
    over = _SPAWN.Event()
    with _running(_read_all, run_dir, over):
        yield
        over.set()


@contextmanager
def _listening(folder: Path, store: StoreSpec) -> Iterator[Feed]:
    """Have a process take batches in as soon as they come."""
    os.environ[TOKEN_VARIABLE] = secrets.token_hex(16)
    with socket.create_server((LOOPBACK, 0)) as probe:
        port = probe.getsockname()[1]
    feed = Feed("cost", "zmq", (("host", LOOPBACK), ("port", str(port))), 0)
    over = _SPAWN.Event()
    with _running(_take_all, feed, store, over):
        yield feed
        over.set()


@contextmanager
def _running(target: Callable[..., None], *given: object) -> Iterator[None]:
    ready = _SPAWN.Event()
    process = _SPAWN.Process(target=target, args=(*given, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(_STARTS_WITHIN_S):
            raise SystemExit(f"a process of the benchmark did not start within {_STARTS_WITHIN_S:g} s")
        yield
        process.join(_STARTS_WITHIN_S)
    finally:
        process.kill()
        process.join()


def _read_all(run_dir: str, over: Event, ready: Event) -> None:
    ready.set()
    while not over.is_set():
        for served in announced(run_dir):
            with suppress(OSError), socket.create_connection((served.host, served.port), 1.0) as client:
                client.sendall(HEADER.pack(Header.GO, 0))
                while client.recv(2**16):
                    pass
        time.sleep(0.002)


def _take_all(feed: Feed, store: StoreSpec, over: Event, ready: Event) -> None:
    inlet = FeedInlet(feed, None, [store])
    ready.set()
    while not over.is_set():
        batches = inlet.hear(0.1).get(0, [])
        inlet.tell([Receipt(batch.stream, batch.number + 1) for batch in batches])
        for batch in batches:
            evict(batch.points)
    inlet.close()
