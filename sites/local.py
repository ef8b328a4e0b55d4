"""The machine at hand as a site: two worker pools, one for segments and one for learning."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from sites.htex import htex
from sites.site import REACHES_ALL, Resources, Site, worker_environment

# Workers on this machine take `tasks` from where the driver runs, whatever is installed.
CHECKOUT = Path(__file__).parents[1]


def local(name: str = "local", reaches: frozenset[str] = REACHES_ALL) -> Site:
    """Return this machine, with executors ``cpu`` (segments) and ``gpu`` (learning, on the GPUs if there are any)."""
    return Site(
        name=name,
        simulate=lambda resources: htex(
            "cpu",
            _provider(reaches),
            resources,
            workers_per_node=resources.simulate_workers,
            accelerators=_share(resources),
        ),
        learn=lambda resources: htex(
            "gpu", _provider(reaches), resources, workers_per_node=resources.ml_workers, accelerators=gpus()
        ),
        simulate_slots=lambda resources: resources.simulate_workers,
        learn_slots=lambda resources: resources.ml_workers,
        reaches=reaches,
        shares_run_dir=True,
    )


def submit_host(resources: Resources) -> HighThroughputExecutor:
    """Return the submit host's own executor, for data that have to be moved between stores."""
    return htex("host", _provider(REACHES_ALL), resources, workers_per_node=1)


def _share(resources: Resources) -> list[str]:
    """Return a device for each segment worker, in turn, where there are GPUs."""
    devices = gpus()
    return [devices[worker % len(devices)] for worker in range(resources.simulate_workers)] if devices else []


def _provider(reaches: frozenset[str]) -> LocalProvider:
    return LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1, worker_init=worker_environment(reaches, CHECKOUT))


def gpus() -> list[str]:
    """Return the NVIDIA devices that are ours to use (no CUDA context is made in this process)."""
    allotted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allotted is not None:
        return [device.strip() for device in allotted.split(",") if device.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return [str(n) for n, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
