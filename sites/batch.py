"""Clusters under Slurm or PBS: blocks of nodes that are asked for as work comes, and given back when it ends."""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from parsl.addresses import address_by_hostname
from parsl.executors import HighThroughputExecutor
from parsl.launchers import MpiExecLauncher, SrunLauncher
from parsl.launchers.base import Launcher
from parsl.providers import PBSProProvider, SlurmProvider
from parsl.providers.base import ExecutionProvider

from sites.devices import sharing
from sites.htex import htex
from sites.site import Resources, Site, no_devices, worker_environment
from tasks.errors import BadInput

logger = logging.getLogger(__name__)

# A file system that nodes share with this host; Redis of this host's loopback is not there.
_REACHES = frozenset({"file", "inline"})


@dataclass(frozen=True, slots=True)
class Nodes:
    """What a site asks its scheduler for.

    Attributes
    ----------
    walltime
        Of a block, as ``HH:MM:SS``.
    account, queue
        Who pays, and where jobs wait (Slurm's partition); None for what the scheduler has for you.
    per_block, max_blocks
        Nodes that come and go together, and how many such blocks there may be at once.
    devices
        GPUs of a node; 0 for segments and learning on its cores.
    workers
        Tasks at once on a node without devices; with devices each takes one (``--segments-per-device`` several).
    init
        Shell lines that bring Python and `tasks`.
    options
        Lines for the head of the job's script, ``#SBATCH ...`` or ``#PBS ...``.
    launcher
        How a worker pool is started on each node of a block.
    address
        Where workers dial this host; None for what its name resolves to.
    poll_s
        How often the scheduler is asked how blocks are. One that serves many people wants it seldom.
    reaches
        Kinds of store that workers open; with ``redis`` where nodes reach the server that ``--redishost`` names.
    """

    walltime: str
    account: str | None = None
    queue: str | None = None
    per_block: int = 1
    max_blocks: int = 1
    devices: int = 0
    workers: int = 1
    init: str = ""
    options: str = ""
    launcher: Launcher | None = None
    address: str | None = None
    poll_s: int = 20
    reaches: frozenset[str] = _REACHES


class _Polled:
    """A provider that asks its scheduler as often as the site says."""

    poll_s: int

    @property
    def status_polling_interval(self) -> int:
        """Return after how many seconds blocks are looked at again."""
        return self.poll_s


class PatientSlurm(_Polled, SlurmProvider):  # type: ignore[misc]  # Parsl has no types
    """Parsl's provider, which forgets no block that Slurm forgot.

    Without accounting Parsl asks ``squeue`` for blocks by number, which fails for all of them once one is forgotten:
    its status stays what it was, and it is never replaced.
    """

    _cmd: str
    _BY_NUMBER = re.compile(r"^(squeue.*) --job '\{0\}'$")

    def __init__(self, poll_s: int, **given: object) -> None:
        super().__init__(**given)
        self.poll_s = poll_s
        own = self._BY_NUMBER.match(self._cmd)
        if own is not None:
            self._cmd = f"""all=$({own[1]} --me) && echo "$all" | awk 'index(",{{0}},", "," $1 ",")'"""

    def _status(self) -> None:
        try:
            super()._status()
        except subprocess.TimeoutExpired:
            logger.warning("Slurm did not tell within %g s how blocks are; they count as they were", self.cmd_timeout)


class PolledPBS(_Polled, PBSProProvider):  # type: ignore[misc]
    """Parsl's provider."""

    def __init__(self, poll_s: int, **given: object) -> None:
        super().__init__(**given)
        self.poll_s = poll_s


def slurm(
    name: str, nodes: Nodes, qos: str | None = None, constraint: str | None = None, exclusive: bool = False
) -> Site:
    """Return a cluster under Slurm whose file system this host shares."""

    def provider(worker_init: str) -> ExecutionProvider:
        return PatientSlurm(
            nodes.poll_s,
            partition=nodes.queue,
            account=nodes.account,
            qos=qos,
            constraint=constraint,
            exclusive=exclusive,
            gpus_per_node=nodes.devices or None,
            launcher=nodes.launcher or SrunLauncher(),
            worker_init=worker_init,
            **_blocks(nodes),
        )

    return _site(name, nodes, provider)


def pbs(name: str, nodes: Nodes, cpus_per_node: int = 1) -> Site:
    """Return a cluster under PBS Pro whose file system this host shares."""

    def provider(worker_init: str) -> ExecutionProvider:
        return PolledPBS(
            nodes.poll_s,
            queue=nodes.queue,
            account=nodes.account,
            cpus_per_node=cpus_per_node,
            select_options=f"ngpus={nodes.devices}" if nodes.devices else "",
            launcher=nodes.launcher or MpiExecLauncher(),
            worker_init=worker_init,
            **_blocks(nodes),
        )

    return _site(name, nodes, provider)


def _blocks(nodes: Nodes) -> dict[str, object]:
    return {
        "nodes_per_block": nodes.per_block,
        "init_blocks": 1,
        "min_blocks": 0,
        "max_blocks": nodes.max_blocks,
        "walltime": nodes.walltime,
        "scheduler_options": nodes.options,
    }


def _site(name: str, nodes: Nodes, provider: Callable[[str], ExecutionProvider]) -> Site:
    if not re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", nodes.walltime) or nodes.walltime.rsplit(":", 1)[0].strip("0:") == "":
        raise BadInput(
            f"site {name} asks for a walltime of {nodes.walltime!r}: write HH:MM:SS, of a minute at least (Parsl "
            "counts whole minutes, and 0 is no limit to Slurm)"
        )
    most = nodes.per_block * nodes.max_blocks

    def workers(resources: Resources) -> int:
        return nodes.devices * (resources.segments_per_device or 1) or nodes.workers

    def executor(label: str, resources: Resources, n_workers: int) -> HighThroughputExecutor:
        per_device = n_workers // nodes.devices if nodes.devices else 0
        if not nodes.devices:
            no_devices(name, resources)
        environment = worker_environment(
            nodes.reaches, shared=sharing(per_device), pinned=nodes.devices > 0, unpacking=resources.unpacking
        )
        return htex(
            label,
            provider("\n".join(filter(None, (nodes.init, environment)))),
            resources,
            workers_per_node=n_workers,
            address=nodes.address or address_by_hostname(),
            # A number is enough with NVIDIA's: Parsl divides it by the devices that it finds on a node.
            accelerators=n_workers if nodes.devices else 0,
        )

    learners = nodes.devices or nodes.workers
    return Site(
        name=name,
        simulate=lambda resources: executor(f"{name}-simulate", resources, workers(resources)),
        learn=lambda resources: executor(f"{name}-learn", resources, learners),
        simulate_slots=lambda resources: most * workers(resources),
        learn_slots=lambda resources: most * learners,
        reaches=nodes.reaches,
        shares_run_dir=True,
    )
