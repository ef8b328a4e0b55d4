"""What it adds to a segment's CPU time to show its frames."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from agents.feed import FeedInlet
from agents.state import Receipt
from benchmarks.harness import ROOT, Figure, Session, Wanted, interval
from tasks.announce import announced
from tasks.imd_protocol import HEADER, Header
from tasks.messages import Dynamics, Feed, SegmentSpec, StoreSpec, Watch
from tasks.simulate import run_segment
from tasks.stream.spec import LOOPBACK
from tasks.systems import named_system, prepare
from tasks.transport import TOKEN_VARIABLE, evict, ship

FRAME_STEPS: Final = 62  # of 4 fs: 0.248 ps
N_FRAMES: Final = 400

_SPAWN = multiprocessing.get_context("spawn")
_STARTS_WITHIN_S: Final = 60.0


def figures(session: Session) -> dict[str, Figure]:
    """Return what is added, in per cent of the CPU time of a segment that nobody looks at."""
    n_repeats = session.options.repeats or (3 if session.quick else 10)
    store = StoreSpec("cost", "file", (("store_dir", str(session.folder / "cost")),))
    spec = _segment(session.folder, store)
    with _listening(session.folder, store) as feed:
        watches = {
            "nobody": None,
            "a function": Watch(1, True, f"{__name__}:look", str(ROOT), 60.0),
            "IMD, no client": Watch(1, True, imd_host=LOOPBACK),
            "IMD, a client": Watch(1, True, imd_host=LOOPBACK),
            "learning, 10 batches": Watch(N_FRAMES // 10, True, feed=feed),
            "learning, each frame": Watch(1, True, feed=feed, when_slow="wait"),
        }
        arms = {name: partial(_cpu_s, replace(spec, watch=watch), name) for name, watch in watches.items()}
        for arm in arms.values():
            arm()  # warm
        rounds = session.rounds("cost", arms, n_repeats)
    found: dict[str, Figure] = {}
    simulated_ps = spec.dynamics.segment_ps
    found["cost, nobody looks"] = interval((1000 * r["nobody"] / simulated_ps for r in rounds), "CPU ms/ps")
    for name in list(watches)[1:]:
        added = (100 * (r[name] / r["nobody"] - 1) for r in rounds)
        found[f"cost, {name}"] = interval(added, "% more", Wanted(at_most=1.0 if "no client" in name else 5.0))
    return found


def look(frames: object, times_ps: object, box: object) -> dict[str, float]:
    """Return nothing of interest: what it costs is to be called."""
    return {}


def _segment(folder: Path, store: StoreSpec) -> SegmentSpec:
    prepared = prepare(named_system("alanine-dipeptide", platform="Reference"))
    inline = StoreSpec("inline", "inline")
    (folder / "trajectories").mkdir()
    return SegmentSpec(
        segment_id=0,
        attempt=1,
        walker_id=0,
        iteration=0,
        parent_id=None,
        parent_frame=None,
        system=ship(prepared.to_arrays(), inline),
        system_id=prepared.digest,
        start=ship({"positions": prepared.positions[None]}, inline),
        start_row=0,
        seed=1,
        dynamics=Dynamics(N_FRAMES * FRAME_STEPS, FRAME_STEPS, 0.004, 300.0, 1.0, "Reference"),
        store=store,
        run_dir=str(folder),
    )


def _cpu_s(spec: SegmentSpec, name: str) -> float:
    """Return the CPU seconds of a segment, of all threads of this process."""
    with _client(spec.run_dir or "") if name == "IMD, a client" else nullcontext():
        began = time.process_time()
        result = run_segment(spec)
        took = time.process_time() - began
    for ref in (result.frames, result.end):
        evict(ref)
    return took


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
