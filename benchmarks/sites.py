"""What it costs to have a task done behind ssh, held against the same task on this machine.

Tasks go through bare Parsl to one warm worker here and one behind ssh, in turns; data lie in a Redis server here,
which the far worker reaches through its block's tunnel. Told are the turnaround of a task without work, the time
from its end to the answer here (where clocks agree), and the turnaround with 10 kB to 100 MB; and the rate of 100
MB through the tunnel over that of ``scp`` through a warm ControlMaster. Wanted: an empty task at most twice as long
as here, and 0.6 of scp's rate. Between two hosts on one computer there is no distance: what is measured is what
software costs.

Needs a host: ``--ssh-host HOST``, with ``--ssh-config`` and ``--ssh-init`` as of ``run.py``. Where that is
this computer add ``--keep-busy``, for its sshd counts among the others that use the machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import parsl
from parsl.config import Config

from benchmarks.harness import Figure, Figures, Session, Wanted, interval, median, run
from sites import redis_server
from sites.local import local
from sites.site import Resources, SshAccess
from sites.ssh import ssh_site
from tasks.messages import Ref, StoreSpec
from tasks.transport import evict, ship

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)

# A repeat moves this much each way, but has at least 1 and at most 20 turns.
_BYTES_PER_REPEAT = 100_000_000


def measure(session: Session) -> Figures:
    """Return milliseconds and ratios by path."""
    access = SshAccess(session.options.ssh_host, session.options.ssh_config, session.options.ssh_init)
    redis = redis_server.start(None, session.folder / "redis.log")
    keys = session.folder / "keys"
    keys.mkdir(mode=0o700)
    resources = Resources(1, 1, keys, 2.0, 30.0, ssh=access, forwards=(redis.port,))
    executors = [site.learn(resources) for site in (local(), ssh_site("ssh")) if site.learn is not None]
    logs = str(session.folder / "logs")
    try:
        kernel = parsl.load(Config(executors=executors, run_dir=logs, usage_tracking=0, strategy_period=1))
        try:
            apps = {
                name: {f.__name__: _on(executor.label, f) for f in (nothing, count)}
                for name, executor in zip(("local", "ssh"), executors, strict=True)
            }
            store = StoreSpec("bench", "redis", (("hostname", redis.host), ("port", str(redis.port))))
            figures = _empty(session, apps)
            for size in session.options.sizes or SIZES:
                figures |= _with_data(session, apps, store, size, access)
            return figures
        finally:
            kernel.cleanup()
            parsl.clear()
    finally:
        redis.stop()


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


def _empty(session: Session, apps: dict[str, dict[str, Any]]) -> dict[str, Figure]:
    notified: dict[str, list[float]] = {name: [] for name in apps}

    def turns(name: str) -> float:
        took = []
        for _ in range(50):
            began = time.time()
            ended = apps[name]["nothing"]().result(timeout=120)
            took.append(time.time() - began)
            notified[name].append(time.time() - ended)
        return median(took)

    for name in apps:
        turns(name)
        notified[name].clear()
    rounds = session.rounds("empty", {name: partial(turns, name) for name in apps}, 3 if session.quick else 10)
    figures = {f"{name} empty": interval((1000 * r[name] for r in rounds), "ms") for name in apps}
    for name, seconds in notified.items():
        figures[f"{name} notification"] = interval([1000 * median(seconds)], "ms")
    ratios = (r["ssh"] / r["local"] for r in rounds)
    return figures | {"ssh/local empty": interval(ratios, "ratio", Wanted(at_most=2.0))}


def _with_data(
    session: Session, apps: dict[str, dict[str, Any]], store: StoreSpec, size: int, access: SshAccess
) -> dict[str, Figure]:
    array = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    turns = max(1, min(20, _BYTES_PER_REPEAT // size))
    reading: dict[str, list[float]] = {name: [] for name in apps}
    ways: dict[str, Callable[[], float]] = {
        name: partial(_turnaround, apps[name]["count"], store, array, turns, reading[name]) for name in apps
    }
    with ExitStack() as stack:
        if size == max(SIZES):
            ways["scp"] = stack.enter_context(_scp(session.folder, array, access))
        for way in ways.values():
            way()
        rounds = session.rounds(_label(size), ways, 3 if session.quick else 10)
    figures = {f"{name} {_label(size)}": interval((1000 * r[name] for r in rounds), "ms") for name in ways}
    figures[f"ssh/local {_label(size)}"] = interval((r["ssh"] / r["local"] for r in rounds), "ratio")
    if "scp" in ways and rounds:
        scp = median([r["scp"] for r in rounds])
        rates = (scp / read_s for read_s in reading["ssh"][1:])
        figures[f"tunnel/scp {_label(size)}"] = interval(rates, "of scp's rate", Wanted(at_least=0.6))
        whole = (r["scp"] / r["ssh"] for r in rounds)
        figures[f"turnaround/scp {_label(size)}"] = interval(whole, "of scp's rate")
    return figures


def _turnaround(
    app: Callable[..., Any], store: StoreSpec, array: np.ndarray, turns: int, reading: list[float]
) -> float:
    took = []
    for _ in range(turns):
        began = time.perf_counter()
        ref = ship({"array": array}, store)
        n_bytes, read_s = app(ref).result(timeout=300)
        took.append(time.perf_counter() - began)
        reading.append(read_s)
        evict(ref)
        assert n_bytes == array.nbytes
    return median(took)


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
        subprocess.run(["ssh", *options, access.host, f"rm -f {copied}"], check=False, timeout=60)
        subprocess.run(["ssh", *options, "-O", "exit", access.host], check=False, timeout=60)


def _label(size: int) -> str:
    return f"{size // 1_000_000} MB" if size >= 1_000_000 else f"{size // 1000} kB"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssh-host", required=True, metavar="HOST", help="where the far worker runs")
    parser.add_argument("--ssh-config", type=Path, metavar="FILE", help="ssh configuration to use")
    parser.add_argument("--ssh-init", metavar="LINE", help="shell line that brings Python and `tasks` there")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="BYTES", help="instead of 10 kB to 100 MB")


if __name__ == "__main__":
    sys.exit(run("sites", __doc__, measure, _options))
