"""Parsl's high-throughput executor as Wayfinder uses it: encrypted, heart-beating, and never given up for good."""

from __future__ import annotations

from pathlib import Path

from parsl import curvezmq
from parsl.executors import HighThroughputExecutor
from parsl.providers.base import ExecutionProvider

from sites.site import Resources


def htex(
    label: str,
    provider: ExecutionProvider,
    resources: Resources,
    *,
    workers_per_node: int,
    address: str = "127.0.0.1",
    accelerators: int | list[str] = 0,
    queued_per_node: int = 0,
    worker_logdir: Path | None = None,
) -> HighThroughputExecutor:
    """Return an executor whose blocks are restarted whenever they die.

    Parameters
    ----------
    address
        Where workers dial the interchange: loopback unless they are on other machines.
    accelerators
        Devices to pin workers to.
    queued_per_node
        Tasks that wait on the node itself, so that a worker need not wait a round trip for its next one. They stay
        there: with several nodes one could be idle while tasks wait on another.
    """
    executor = HighThroughputExecutor(
        label=label,
        provider=provider,
        address=address,
        loopback_address="127.0.0.1",
        max_workers_per_node=workers_per_node,
        prefetch_capacity=queued_per_node,
        cores_per_worker=1e-6,  # the number of workers is ours to say, not the number of cores divided
        available_accelerators=accelerators,
        heartbeat_period=max(1, round(resources.heartbeat_s)),
        heartbeat_threshold=max(2, round(resources.heartbeat_threshold_s)),
        # With Parsl's default handler one lost manager makes the executor refuse work for ever.
        block_error_handler=False,
        encrypted=True,
        worker_logdir_root=None if worker_logdir is None else str(worker_logdir),
    )
    # Parsl would put the secret keys among its logs, in the run directory.
    keys = resources.private_dir / label
    keys.mkdir(mode=0o700, parents=True)
    executor.cert_dir = curvezmq.create_certificates(str(keys))
    return executor
