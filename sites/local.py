"""The machine at hand as a site: two worker pools, one for segments and one for learning."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from parsl.executors import HighThroughputExecutor
from parsl.executors.base import ParslExecutor
from parsl.providers import LocalProvider

from sites.devices import deal, gpus, sharing
from sites.htex import htex
from sites.site import REACHES_ALL, Resources, Site, no_devices, worker_environment
from tasks.errors import BadInput

# Workers on this machine take `tasks` from where the driver runs, whatever is installed.
CHECKOUT = Path(__file__).parents[1]

# Where nobody says how many, and no device does.
_SEGMENT_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Who runs where on this machine.

    Attributes
    ----------
    n_segments
        Segments that run at once.
    segments, learning
        Device of each worker; empty where there are none.
    """

    n_segments: int
    segments: list[str]
    learning: list[str]


def lay_out(site: str, devices: Sequence[str], resources: Resources) -> Layout:
    """Return a device for every worker.

    Segments that are meant for devices are dealt over them in turn. Learning takes the devices that they leave; where
    they leave none it shares, the last device first, which has the fewest segments.

    Raises
    ------
    BadInput
        When more segments would run than the devices may take, and when there is no device to take them.
    """
    per_device, n_segments = resources.segments_per_device, resources.simulate_workers
    if not devices:
        no_devices(site, resources)
    most = len(devices) * (per_device or 1)
    if per_device is not None and n_segments is not None and n_segments > most:
        raise BadInput(
            f"--simulate-workers {n_segments} is more than --segments-per-device {per_device} allows on "
            f"{len(devices)} device{'s' * (len(devices) > 1)}: give at most {most}, or leave it out"
        )
    taken = devices if resources.on_devices or per_device is not None else []
    if n_segments is None:
        n_segments = most if taken else _SEGMENT_WORKERS
    free = devices[min(n_segments, len(taken)) :] or devices[::-1]
    return Layout(n_segments, deal(taken, n_segments), deal(free, resources.ml_workers))


# Where workers take every core, the main process decides when the kernel lets it, and slots wait: workers that give
# way halve the median decision (ARCHITECTURE.md has figures).
_GIVE_WAY = "renice -n 10 -p $$ > /dev/null 2>&1 || true"


def local(name: str = "local", reaches: frozenset[str] = REACHES_ALL) -> Site:
    """Return this machine, with executors ``cpu`` (segments) and ``gpu`` (learning), both on the GPUs there are."""
    # Asking a driver for its devices takes a second.
    layout = lru_cache(maxsize=1)(lambda resources: lay_out(name, gpus(), resources))

    def simulate(resources: Resources) -> HighThroughputExecutor:
        laid = layout(resources)
        # Learning keeps out of MPS: it is another block, and may have a device of its own.
        per_device = max(Counter(laid.segments).values(), default=0)
        shared = sharing(per_device, resources.private_dir, list(dict.fromkeys(laid.segments)))
        return htex(
            "cpu",
            _provider(reaches, laid.segments, shared, resources.unpacking),
            resources,
            workers_per_node=laid.n_segments,
            queued_per_node=laid.n_segments,
            accelerators=laid.segments,
        )

    def learn(resources: Resources) -> HighThroughputExecutor:
        devices = layout(resources).learning
        return htex(
            "gpu",
            _provider(reaches, devices, unpacking=resources.unpacking),
            resources,
            workers_per_node=resources.ml_workers,
            accelerators=devices,
        )

    return Site(
        name=name,
        simulate=simulate,
        learn=learn,
        simulate_slots=lambda resources: layout(resources).n_segments,
        learn_slots=lambda resources: resources.ml_workers,
        reaches=reaches,
        shares_run_dir=True,
        dials_back=True,
    )


def is_here(executor: ParslExecutor) -> bool:
    """Return whether an executor's workers run on this machine."""
    return isinstance(getattr(executor, "provider", None), LocalProvider)


def submit_host(resources: Resources, n_workers: int = 1) -> HighThroughputExecutor:
    """Return the submit host's own executor: for data that have to be moved between stores, and for hooks."""
    return htex("host", _provider(REACHES_ALL), resources, workers_per_node=n_workers)


def _provider(
    reaches: frozenset[str],
    devices: Sequence[str] = (),
    shared: Sequence[str] = (),
    unpacking: Sequence[str] = (),
) -> LocalProvider:
    """Return what starts workers on this machine; what the user's shell can import, they can."""
    lines = [_GIVE_WAY, worker_environment(reaches, CHECKOUT, shared, pinned=bool(devices), unpacking=unpacking)]
    if theirs := os.environ.get("PYTHONPATH"):
        lines.append(f"export PYTHONPATH=$PYTHONPATH:{shlex.quote(theirs)}")
    return LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1, worker_init="\n".join(lines))
