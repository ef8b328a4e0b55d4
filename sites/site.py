"""What a site is to the campaign: executors, the stores it reaches, and whether it shares the run directory."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parsl.executors.base import ParslExecutor

from tasks.errors import BadInput
from tasks.transport import REACHES_VARIABLE


@dataclass(frozen=True, slots=True)
class SshAccess:
    """How a host is reached by ssh.

    Attributes
    ----------
    host
        As in the ssh configuration.
    config
        That file; None for the user's own.
    init
        Shell line that brings Python and `tasks` on its PATH.
    folder
        For work and logs over there.
    tunnel, port
        Whether each block opens its tunnel (``auto``), or one is there already, under that port on both ends.
    """

    host: str
    config: Path | None = None
    init: str | None = None
    folder: str = "/tmp/wayfinder"
    tunnel: Literal["auto", "manual"] = "auto"
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """What the command line says about executors.

    Attributes
    ----------
    private_dir
        A directory that only this user reads, for the keys of encrypted connections; removed after the run.
    simulate_workers
        None for as many as a site has by itself.
    heartbeat_s, heartbeat_threshold_s
        Period of the signs of life, and the silence after which a worker pool counts as lost.
    segments_per_device
        How many segments run at once on a device; None where nobody asked.
    on_devices
        Whether segments are meant for devices.
    label_suffix
        Keeps apart the labels of executors that sites of a pool call alike.
    unpacking
        Shell lines of `sites.staging.unpacking` where workers take their environment from an archive.
    ssh
        The host of the command line, if it names one.
    forwards
        Ports of this machine's loopback that workers of other machines need: of a Redis server with their data, and
        where batches of running segments are told of.
    task_timeout_s
        After which a task that was sent counts as lost.
    """

    simulate_workers: int | None
    ml_workers: int
    private_dir: Path
    heartbeat_s: float
    heartbeat_threshold_s: float
    segments_per_device: int | None = None
    on_devices: bool = False
    label_suffix: str = ""
    unpacking: tuple[str, ...] = ()
    ssh: SshAccess | None = None
    forwards: tuple[int, ...] = ()
    task_timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Site:
    """A machine or cluster.

    Attributes
    ----------
    simulate, learn
        Make the executor for segments, and the one for training and inference; None where the site has none.
    simulate_slots, learn_slots
        How many tasks they run at once.
    reaches
        Kinds of store that its workers can open.
    shares_run_dir
        Whether its workers see the run directory under the same path.
    dials_back
        Whether its workers reach ports of the submit host's loopback (`tasks.transport.port_here`).
    max_inline_bytes
        Of arrays in a message, where what carries it takes less than others do.
    """

    name: str
    simulate: Callable[[Resources], ParslExecutor] | None
    learn: Callable[[Resources], ParslExecutor] | None
    simulate_slots: Callable[[Resources], int]
    learn_slots: Callable[[Resources], int]
    reaches: frozenset[str]
    shares_run_dir: bool
    max_inline_bytes: int | None = None
    dials_back: bool = False


SiteMaker = Callable[[], Site]

REACHES_ALL: frozenset[str] = frozenset({"file", "redis", "globus", "endpoint", "inline"})


def no_devices(site: str, resources: Resources) -> None:
    """Refuse what is asked of devices at a site that has none.

    Raises
    ------
    BadInput
        When somebody asked for it.
    """
    if resources.segments_per_device is not None:
        raise BadInput(
            f"--segments-per-device {resources.segments_per_device}: site {site} has no device; drop it, or name a "
            "site that has some with --simulate-site"
        )


def worker_environment(
    reaches: frozenset[str],
    checkout: Path | None = None,
    shared: Sequence[str] = (),
    *,
    pinned: bool = False,
    unpacking: Sequence[str] = (),
) -> str:
    """Return shell lines that every worker starts with.

    Libraries stay on one thread, for two lose per CPU-second; and a store that the site does not reach is refused in
    a sentence instead of dialled in vain.

    Parameters
    ----------
    checkout
        Where workers take `tasks` from, if not from what is installed there.
    shared
        Lines of `sites.devices.sharing` where several workers share a device.
    pinned
        Whether each worker is given a device.
    unpacking
        Lines that come first: an environment unpacked on the node.
    """
    threads = [f"export {name}=1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")]
    path = [] if checkout is None else [f"export PYTHONPATH={shlex.quote(str(checkout))}"]
    # Parsl tells a device to ROCm and to CUDA, and HIP would look for the second among what the first left: one
    # device, number 0 (github.com/Parsl/parsl/issues/3858). What is said to HIP goes before what is said to CUDA.
    amd = ["export HIP_VISIBLE_DEVICES=0"] if pinned else []
    stores = f"export {REACHES_VARIABLE}={','.join(sorted(reaches))}"
    return "\n".join([*unpacking, *threads, *path, *amd, *shared, stores])
