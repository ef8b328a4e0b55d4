"""Ask an executor what it is before any work is sent there, and warm its imports while at it."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from tasks.errors import BadInput, TaskFailed
from tasks.messages import ProbeReport, ProbeSpec, Ref, StoreSpec, StoreSpeed
from tasks.transport import evict, fetch, ship

# What a role needs: (distribution, module). Importing is what makes the first task as fast as the others.
_NEEDED = {
    "md": (("OpenMM", "openmm"), ("MDAnalysis", "MDAnalysis"), ("wayfinder-tasks", "tasks.simulate")),
    "ml": (
        ("torch", "torch"),
        ("scikit-learn", "sklearn.neighbors"),
        ("MDAnalysis", "MDAnalysis.lib.distances"),
        ("wayfinder-tasks", "tasks.infer"),
        ("wayfinder-tasks", "tasks.aae"),
    ),
    "host": (),
}
# Where workers share devices: how many on each. Sites set it, and CUDA_MPS_PIPE_DIRECTORY where MPS serves them.
SHARING_VARIABLE = "WAYFINDER_SEGMENTS_PER_DEVICE"

_SHARED = (("numpy", "numpy"), ("proxystore", "proxystore"), ("colmena", "colmena"), ("parsl", "parsl"))


def probe(spec: ProbeSpec) -> ProbeReport:
    """Return what this executor runs, and a sentence for each thing that would make work fail here."""
    began = time.monotonic()
    problems: list[str] = []
    versions = {}
    for distribution, module in (*_SHARED, *_NEEDED[spec.role]):
        try:
            importlib.import_module(module)
            versions[distribution] = metadata.version(distribution)
        except (ImportError, metadata.PackageNotFoundError) as error:
            problems.append(f"{distribution} is missing: {error}; install the wayfinder-tasks wheel with its extras")
    platforms = _openmm_platforms() if spec.role == "md" and "OpenMM" in versions else ()
    for wanted in spec.platforms if platforms else ():
        if wanted not in platforms:
            problems.append(f"OpenMM platform {wanted} is not there, only {', '.join(platforms)}")
    problems += [problem for ref in spec.left if (problem := _lack(ref))]
    speeds = {}
    for store in spec.stores:
        if problem := _store_problem(store):
            problems.append(problem)
        elif spec.bulk_bytes and store.kind != "inline":
            speeds[store.name] = _store_speed(store, spec.bulk_bytes)
    if spec.run_dir is not None and (problem := _directory_problem(Path(spec.run_dir))):
        problems.append(problem)
    if spec.scratch is not None and (problem := _scratch_problem(Path(spec.scratch))):
        problems.append(problem)
    if not problems and spec.role == "ml":
        _warm_torch()
    return ProbeReport(
        host=platform.node(),
        python=platform.python_version(),
        versions=versions,
        tasks_digest=source_digest(),
        device=_device(spec.role, versions),
        platforms=platforms,
        free_disk_bytes=_free_disk_bytes(spec.run_dir or tempfile.gettempdir()),
        problems=tuple(problems),
        stores=speeds,
        took_s=time.monotonic() - began,
    )


def source_digest() -> str:
    """Return a digest of the source of `tasks` as installed here."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _warm_torch() -> None:
    """Make one optimizer: torch imports a second's worth of modules for the first."""
    import torch

    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])


def _openmm_platforms() -> tuple[str, ...]:
    import openmm

    return tuple(openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms()))


def _store_problem(store: StoreSpec) -> str | None:
    if store.kind == "inline":
        return None
    sent = np.arange(16, dtype=np.float32)
    try:
        ref = ship({"probe": sent}, store)
        came_back = fetch(ref)["probe"]
        evict(ref)
    except (BadInput, TaskFailed, OSError) as error:
        return f"store {store.name} ({store.kind}) cannot be used: {error}"
    return None if np.array_equal(sent, came_back) else f"store {store.name} ({store.kind}) returned other data"


def _lack(ref: Ref) -> str | None:
    """Return a sentence where a store does not hold what the campaign's host put there."""
    try:
        fetch(ref)
    except (BadInput, TaskFailed, OSError) as error:
        return (
            f"store {ref.store.name} ({ref.store.kind}) lacks here what the campaign's host put there ({error}): "
            "name a folder or server that both see, or another backend"
        )
    return None


def _store_speed(store: StoreSpec, bulk_bytes: int) -> StoreSpeed:
    round_trip_s = _there_and_back(store, 16)
    return StoreSpeed(store.kind, round_trip_s, 2 * bulk_bytes / _there_and_back(store, bulk_bytes))


def _there_and_back(store: StoreSpec, n_bytes: int) -> float:
    sent = {"probe": np.zeros(n_bytes, np.uint8)}
    began = time.perf_counter()
    ref = ship(sent, store)
    fetch(ref)
    took = time.perf_counter() - began
    evict(ref)
    return took


def _directory_problem(run_dir: Path) -> str | None:
    try:
        with tempfile.NamedTemporaryFile(dir=run_dir, prefix=".probe-"):
            return None
    except OSError as error:
        return f"run directory {run_dir} cannot be written: {error}"


def _scratch_problem(scratch: Path) -> str | None:
    # The campaign's own folder is made with its first segment, and a probe leaves nothing behind.
    there = next(folder for folder in scratch.parents if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".probe-"):
            return None
    except OSError as error:
        return f"--scratch {scratch.parent} cannot be written: {error}"


def _free_disk_bytes(directory: str) -> int:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0  # no such directory, which is among the problems already


def _device(role: str, versions: dict[str, str]) -> str:
    if role == "ml" and "torch" in versions:
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name(0))
    pinned = os.environ.get("CUDA_VISIBLE_DEVICES")
    if role == "md" and pinned:
        return f"device {pinned}{_sharing()}"
    return f"cpu ({os.cpu_count()} cores)"


def _sharing() -> str:
    """Return how many segments share a device, and how, as the end of a sentence."""
    per_device = os.environ.get(SHARING_VARIABLE)
    if per_device is None:
        return ""
    how = "by MPS" if "CUDA_MPS_PIPE_DIRECTORY" in os.environ else "in turns, without MPS"
    return f" ({per_device} segments at once {how})"
