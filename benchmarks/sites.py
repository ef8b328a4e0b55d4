"""What it costs to have a task done elsewhere, held against the same task on this machine.

Ways that are named are measured in one run: ``--ssh-host HOST`` (with ``--ssh-config`` and ``--ssh-init`` as of
``run.py``), ``--ml-endpoint UUID`` (Globus Compute) and ``--site NAME`` (the learning of a site of config.py, as one
under Slurm). Tasks go through bare Parsl to one warm worker of each and of this machine, in turns; data lie in a
Redis server here where the way's worker reaches that, through its block's tunnel or on loopback, or else in files.
Told are the turnaround of a task without work, the time from its end to the answer here (where clocks agree), and the
turnaround with 10 kB to 100 MB; behind ssh also the rate of 100 MB through the tunnel over that of ``scp`` through a
warm ControlMaster. Wanted there: an empty task at most twice as long as here, and 0.6 of scp's rate.

Between hosts on one computer there is no distance: what is measured is what software costs. Published for
multi-site-campaigns (its notebooks), by FuncX and Globus / by Parsl and Redis: from a task's end to the Thinker 0.91
/ 0.020 s for an inference and 1.12 / 0.080 s for a training; everything but work 3.7 / 0.12 s and 8.9 / 0.49 s. These
are of other machines, of whole campaigns and of the real internet: they compare with what is told here in nothing but
their order of magnitude.

Where a way leads back to this computer add ``--keep-busy``, for its daemons count among the others that use the
machine. ``python -m tests.integration.sites.lab`` lends such ways.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import parsl
from parsl.config import Config

import config
from benchmarks.harness import Figure, Figures, Session, Wanted, interval, median, run
from sites import redis_server
from sites.globus import globus
from sites.local import local
from sites.site import Resources, Site, SshAccess
from sites.ssh import ssh_site
from tasks.errors import BadInput
from tasks.messages import Ref, StoreSpec
from tasks.transport import evict, ship

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)

# A repeat moves this much each way, but has at least 1 and at most 20 turns; and none begins after so many seconds,
# for by Globus Compute each takes half of one at least.
_BYTES_PER_REPEAT = 100_000_000
_LONGEST_S = 10.0

# A block may wait in a queue first.
_FIRST_ANSWER_S = 600.0
_ANSWER_S = 300.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Way:
    """A way to a worker.

    Attributes
    ----------
    nothing, count
        The functions of these names, done there.
    """

    name: str
    nothing: Callable[..., Any]
    count: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds of a task there and back, and of its end to the answer here."""

    took: float
    notified: float


def measure(session: Session) -> Figures:
    """Return milliseconds and ratios by way."""
    sites = {"local": local(), **sites_of(session.options)}
    options = session.options
    access = SshAccess(options.ssh_host, options.ssh_config, options.ssh_init) if options.ssh_host else None
    with ExitStack() as stack:
        redis = redis_server.start(None, session.folder / "redis.log")
        stack.callback(redis.stop)
        ways = stack.enter_context(_ways(session, sites, access, redis.port))
        figures = _empty(session, ways)
        stores = (
            StoreSpec("bench", "redis", (("hostname", redis.host), ("port", str(redis.port)))),
            StoreSpec("bench-file", "file", (("store_dir", str(session.folder / "store")),)),
        )
        for store, reaching in _by_store(session, ways, sites, stores).items():
            for size in options.sizes or SIZES:
                figures |= _with_data(session, reaching, store, size, access)
        return figures


def sites_of(options: argparse.Namespace) -> dict[str, Site]:
    """Return the sites that the command line names.

    Raises
    ------
    BadInput
        When it names none, one twice, or one where nothing learns.
    """
    named: list[tuple[str, Site]] = []
    if options.ssh_host is not None:
        named.append(("ssh", ssh_site("ssh")))
    if options.ml_endpoint is not None:
        named.append(("globus", globus("globus", options.ml_endpoint)))
    named += [(name, config.site(name)) for name in options.site]
    if not named:
        raise BadInput("no way is named: add --ssh-host HOST, --ml-endpoint UUID or --site NAME")
    for number, (name, site) in enumerate(named):
        if name in {"local", *(before for before, _ in named[:number])}:
            raise BadInput(f"--site {name} is measured already: name another site, or drop it")
        if site.learn is None:
            raise BadInput(f"--site {name} has no workers for learning: name a site that has some")
    return dict(named)


@contextmanager
def _ways(
    session: Session, sites: dict[str, Site], access: SshAccess | None, redis_port: int
) -> Iterator[tuple[Way, ...]]:
    """Lend a warm worker at each site."""
    keys = session.folder / "keys"
    keys.mkdir(mode=0o700)
    resources = Resources(
        1, 1, keys, 2.0, 30.0, ssh=access, forwards=(redis_port,), task_timeout_s=2 * _FIRST_ANSWER_S
    )
    executors = {
        name: site.learn(replace(resources, label_suffix=f"-{name}"))
        for name, site in sites.items()
        if site.learn is not None
    }
    logs = str(session.folder / "logs")
    kernel = parsl.load(Config(executors=list(executors.values()), run_dir=logs, usage_tracking=0, strategy_period=1))
    try:
        ways = tuple(
            Way(name, _on(executor.label, nothing), _on(executor.label, count))
            for name, executor in executors.items()
        )
        for waiting in [way.nothing() for way in ways]:
            waiting.result(timeout=_FIRST_ANSWER_S)
        yield ways
    finally:
        kernel.cleanup()
        parsl.clear()


def _on(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    app: Callable[..., Any] = parsl.python_app(function, executors=[label])
    return app


def nothing() -> float:
    """Return when it ended."""
    import time

    return time.time()


def count(ref: Ref) -> tuple[int, float]:
    """Return the bytes of the array at an address, and the seconds that reading it took."""
    import time

    from tasks.transport import fetch

    began = time.perf_counter()
    n_bytes = int(fetch(ref)["array"].nbytes)
    return n_bytes, time.perf_counter() - began


def _by_store(
    session: Session, ways: Sequence[Way], sites: dict[str, Site], stores: Sequence[StoreSpec]
) -> dict[StoreSpec, list[Way]]:
    """Return the ways that have their data in each store, beside this machine."""
    here, *others = ways
    reaching: dict[StoreSpec, list[Way]] = {}
    for way in others:
        store = next(
            (store for store in stores if store.kind in sites[way.name].reaches and _reads(way, store)), None
        )
        if store is None:
            session.console.print(f"{way.name}: its worker reaches no store of this benchmark", highlight=False)
            continue
        reaching.setdefault(store, [here]).append(way)
    return reaching


def _reads(way: Way, store: StoreSpec) -> bool:
    """Whether a way's worker finds there what was put here; an endpoint's may be on whatever machine."""
    ref = ship({"array": np.zeros(8, dtype=np.uint8)}, store)
    try:
        way.count(ref).result(timeout=_ANSWER_S)
    except Exception as error:  # noqa: BLE001  # whatever a store raises there, it is not reached
        print(f"{way.name}: {store.kind} is not reached ({error!r})", file=sys.stderr)
        return False
    finally:
        evict(ref)
    return True


def _empty(session: Session, ways: Sequence[Way]) -> dict[str, Figure]:
    arms = {way.name: partial(_turns, way) for way in ways}
    for arm in arms.values():
        arm()
    rounds = session.rounds("empty", arms, _n_repeats(session))
    figures = {f"{name} empty": interval((1000 * r[name].took for r in rounds), "ms") for name in arms}
    for name in arms:
        figures[f"{name} notification"] = interval((1000 * r[name].notified for r in rounds), "ms")
    for way in ways[1:]:
        ratios = (r[way.name].took / r["local"].took for r in rounds)
        wanted = Wanted(at_most=2.0) if way.name == "ssh" else None
        figures[f"{way.name}/local empty"] = interval(ratios, "ratio", wanted)
    return figures


def _turns(way: Way) -> Turn:
    """Return the medians of tasks one after the other."""

    def turn() -> Turn:
        began = time.time()
        ended = way.nothing().result(timeout=_ANSWER_S)
        answered = time.time()
        return Turn(answered - began, answered - ended)

    turns = repeated(turn, 50)
    return Turn(median([each.took for each in turns]), median([each.notified for each in turns]))


def repeated(turn: Callable[[], T], most: int) -> list[T]:
    """Return so many turns, or as many as begin within some seconds, but one at least."""
    began = time.monotonic()
    made = [turn()]
    while len(made) < most and time.monotonic() < began + _LONGEST_S:
        made.append(turn())
    return made


def _with_data(
    session: Session, ways: Sequence[Way], store: StoreSpec, size: int, access: SshAccess | None
) -> dict[str, Figure]:
    array = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    reading: dict[str, list[float]] = {way.name: [] for way in ways}
    arms: dict[str, Callable[[], float]] = {
        way.name: partial(_turnaround, way, store, array, reading[way.name]) for way in ways
    }
    with ExitStack() as stack:
        if access is not None and "ssh" in arms and size == max(SIZES):
            arms["scp"] = stack.enter_context(_scp(session.folder, array, access))
        for arm in arms.values():
            arm()
        label = _label(size, store)
        rounds = session.rounds(label, arms, _n_repeats(session))
    figures = {f"{name} {label}": interval((1000 * r[name] for r in rounds), "ms") for name in arms}
    for way in ways[1:]:
        figures[f"{way.name}/local {label}"] = interval((r[way.name] / r["local"] for r in rounds), "ratio")
    if "scp" in arms and rounds:
        figures |= _beside_scp(rounds, reading["ssh"][1:], label)
    return figures


def _beside_scp(rounds: Sequence[dict[str, float]], reading: Sequence[float], label: str) -> dict[str, Figure]:
    scp = median([r["scp"] for r in rounds])
    rates = (scp / read_s for read_s in reading)
    whole = (r["scp"] / r["ssh"] for r in rounds)
    return {
        f"tunnel/scp {label}": interval(rates, "of scp's rate", Wanted(at_least=0.6)),
        f"turnaround/scp {label}": interval(whole, "of scp's rate"),
    }


def _turnaround(way: Way, store: StoreSpec, array: np.ndarray, reading: list[float]) -> float:
    """Return the median of arrays put here, read there, and told of here."""

    def turn() -> float:
        began = time.perf_counter()
        ref = ship({"array": array}, store)
        n_bytes, read_s = way.count(ref).result(timeout=_ANSWER_S)
        took = time.perf_counter() - began
        reading.append(read_s)
        evict(ref)
        assert n_bytes == array.nbytes
        return took

    return median(repeated(turn, max(1, min(20, _BYTES_PER_REPEAT // array.nbytes))))


@contextmanager
def _scp(folder: Path, array: np.ndarray, access: SshAccess) -> Iterator[Callable[[], float]]:
    """Lend the seconds of a copy over a connection that is open; it is closed, and the copy removed, at the end."""
    file, copied = folder / "sent", f"/dev/shm/{folder.name}"
    file.write_bytes(array.tobytes())
    config = () if access.config is None else ("-F", str(access.config))
    options = ["-o", f"ControlPath={folder / 'm'}", *config]

    def copy() -> float:
        began = time.perf_counter()
        subprocess.run(["scp", "-q", *options, file, f"{access.host}:{copied}"], check=True, timeout=300)
        return time.perf_counter() - began

    subprocess.run(["ssh", *options, "-M", "-N", "-f", access.host], check=True, timeout=60)
    try:
        yield copy
    finally:
        try:
            subprocess.run(["ssh", *options, access.host, f"rm -f {copied}"], check=False, timeout=60)
        finally:
            subprocess.run(["ssh", *options, "-O", "exit", access.host], check=False, timeout=60)


def _label(size: int, store: StoreSpec) -> str:
    told = f"{size // 1_000_000} MB" if size >= 1_000_000 else f"{size // 1000} kB"
    return told if store.kind == "redis" else f"{told} by {store.kind}"


def _n_repeats(session: Session) -> int:
    return session.options.repeats or (3 if session.quick else 10)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssh-host", metavar="HOST", help="a worker behind ssh")
    parser.add_argument("--ssh-config", type=Path, metavar="FILE", help="ssh configuration to use")
    parser.add_argument("--ssh-init", metavar="LINE", help="shell line that brings Python and `tasks` there")
    parser.add_argument("--ml-endpoint", metavar="UUID", help="a worker of a Globus Compute endpoint")
    parser.add_argument(
        "--site",
        action="append",
        default=[],
        metavar="NAME",
        help="a worker of a site of config.py (may be repeated)",
    )
    parser.add_argument("--sizes", type=int, nargs="+", metavar="BYTES", help="instead of 10 kB to 100 MB")
    parser.add_argument("--repeats", type=int, metavar="N", help="of each comparison (default: 10, quick 3)")


if __name__ == "__main__":
    sys.exit(run("sites", __doc__, measure, _options))
