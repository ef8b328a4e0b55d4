"""Parsl's high-throughput executor as Wayfinder uses it: encrypted, heart-beating, and never given up for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq
from parsl import curvezmq
from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD, HTEXFuture
from parsl.providers.base import ExecutionProvider

from sites.site import Resources

# What blocks run in place of Parsl's own; whatever python3 their environment brings has `tasks` installed.
POOL = "python3 -m tasks.worker_pool"

# An interchange that lives answers within milliseconds, and takes whatever it is sent.
_ANSWERS_WITHIN_S = 30.0


class PatientExecutor(HighThroughputExecutor):  # type: ignore[misc]  # Parsl has no types
    """A high-throughput executor that waits for its interchange within bounds.

    Parsl's own waits for ever where that ended: for answers, in the one thread that minds the blocks of all
    executors, and to send, with a lock held that all executors need.
    """

    def start(self) -> None:
        """Start the interchange."""
        super().start()
        self.outgoing_q.zmq_socket.setsockopt(zmq.SNDTIMEO, round(1000 * _ANSWERS_WITHIN_S))

    def connected_blocks(self) -> list[str]:
        """Return the ids of the blocks that have workers; none where the interchange does not answer."""
        return self._asked("CONNECTED_BLOCKS")

    def connected_managers(self) -> list[dict[str, Any]]:
        """Return the worker pools; none where the interchange does not answer."""
        return self._asked("MANAGERS")

    def submit_payload(self, context: dict[str, Any], buffer: bytes) -> HTEXFuture:
        """Send a task, unless the interchange ended."""
        if self._interchange_ended() and not self.bad_state_is_set:
            raise BadStateException(self, RuntimeError(f"the interchange of executor {self.label} ended"))
        return super().submit_payload(context, buffer)

    def _interchange_ended(self) -> bool:
        return self.interchange_proc is not None and self.interchange_proc.poll() is not None

    def _asked(self, command: str) -> list[Any]:
        if self._interchange_ended():
            return []
        try:
            answer: list[Any] = self.command_client.run(command, timeout_s=_ANSWERS_WITHIN_S)
        except (CommandClientTimeoutError, CommandClientBadError):
            return []
        return answer


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
    worker_port: int | None = None,
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
    worker_port
        That of the interchange, where it must be known before; None for a free one.
    """
    label += resources.label_suffix
    executor = PatientExecutor(
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
        worker_port=worker_port,
        launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", POOL, 1),
    )
    # Parsl would put the secret keys among its logs, in the run directory.
    keys = resources.private_dir / label
    keys.mkdir(mode=0o700, parents=True)
    executor.cert_dir = curvezmq.create_certificates(str(keys))
    return executor
