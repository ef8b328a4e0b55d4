"""The task server, made safe: it minds its interchanges, and ends when told to.

Colmena's server leaves the Thinker waiting for ever when Parsl does not come up, when an interchange dies, or when a
task never returns.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import InvalidStateError
from multiprocessing.sharedctypes import RawArray
from typing import Any

import parsl
from colmena.models.methods import PythonMethod
from colmena.task_server.parsl import ParslTaskServer
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.base import ParslExecutor
from redis import RedisError

from agents.pool import GONE
from agents.queues import Queues

logger = logging.getLogger(__name__)

EXIT_INTERCHANGE_DIED = 70

_LOOK_EVERY_S = 0.5
_COUNT_EVERY_S = 1.0


class InterchangeEnded(Exception):
    """An executor of a pool lost its interchange; the others go on."""


class Attendance:
    """How many workers each executor of a pool has: told by the task server's process, read by the main one.

    Made before the fork, so that both see the same memory. Until something is told, a worker is taken to be there.
    """

    def __init__(self, executors: Sequence[str]) -> None:
        self.executors = tuple(executors)
        self._counts = RawArray("i", [1] * len(executors))

    def tell(self, executor: str, n_workers: int) -> None:
        """Say how many workers an executor has, or `agents.pool.GONE`; in one thread only."""
        self._counts[self.executors.index(executor)] = n_workers

    def __call__(self, executor: str) -> int:
        """Return how many workers an executor has, or `agents.pool.GONE`."""
        return int(self._counts[self.executors.index(executor)])


class SafeTaskServer(ParslTaskServer):
    """A Parsl task server that cannot fail in silence.

    Parameters
    ----------
    methods
        ``(name, function, executor label)`` of each task.
    life_line
        File descriptor by which the guardian knows the main process alive; a fork of that must not hold it open.
    attendance
        Of the executors of segments, if there are any: the server outlasts the interchange of one of them as long as
        there is another.
    """

    def __init__(
        self,
        methods: Iterable[tuple[str, Callable[..., Any], str]],
        queues: Queues,
        config: Config,
        life_line: int,
        attendance: Attendance | None = None,
    ) -> None:
        described = [(PythonMethod(function, name), {"executors": [label]}) for name, function, label in methods]
        super().__init__(described, queues, config)
        self._life_line = life_line
        self._attendance = attendance or Attendance(())
        self._n_workers: dict[str, int] = {}

    def run(self) -> None:
        """Serve until told to end; an error goes to the log, for the main process tells the user in a sentence."""
        try:
            super().run()
        except Exception:
            logger.exception("the task server cannot go on")
            raise SystemExit(1) from None

    def _setup(self) -> None:
        # Ctrl-C reaches the whole foreground group; it is the main process that ends things in order.
        os.setpgrp()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(self._life_line)
        super()._setup()
        threading.Thread(target=self._mind_interchanges, name="mind-interchanges", daemon=True).start()
        # An interchange that does not answer must not keep the other thread from seeing that it ended.
        if len(self._attendance.executors) > 1:
            threading.Thread(target=self._count_workers, name="count-workers", daemon=True).start()

    def _cleanup(self) -> None:
        """End Parsl without waiting for tasks: whoever sent the kill signal has stopped waiting for them."""
        parsl.dfk().cleanup()

    def _mind_interchanges(self) -> None:
        kernel = parsl.dfk()  # by name it is gone once it is cleaned up
        interchanges = {
            label: executor.interchange_proc
            for label, executor in kernel.executors.items()
            if getattr(executor, "interchange_proc", None) is not None
        }
        while True:
            for label, process in list(interchanges.items()):
                if process.poll() is not None and not kernel.cleanup_called:
                    logger.error("the interchange of executor %s ended (exit %s)", label, process.returncode)
                    del interchanges[label]
                    self._go_on_without(label)
            for label, n_workers in list(self._n_workers.items()):
                if label in interchanges:
                    self._attendance.tell(label, n_workers)
            time.sleep(_LOOK_EVERY_S)

    def _go_on_without(self, label: str) -> None:
        """Let an executor's tasks fail, which would never come back; end where no other does its work."""
        pool = self._attendance.executors
        if label in pool:
            # Told first, so that none of its tasks is sent there again.
            self._attendance.tell(label, GONE)
        if label not in pool or all(self._attendance(other) == GONE for other in pool):
            os._exit(EXIT_INTERCHANGE_DIED)
        try:
            ended = InterchangeEnded(f"the interchange of executor {label} ended")
            parsl.dfk().executors[label].set_bad_state_and_fail_all(ended)
        except (RuntimeError, InvalidStateError):
            # A task was sent, or came back, meanwhile; what is left there is given up by the main process.
            logger.exception("not every task of executor %s could be failed", label)

    def _count_workers(self) -> None:
        while not parsl.dfk().cleanup_called:
            for label in self._attendance.executors:
                n_workers = workers_of(parsl.dfk().executors[label])
                if n_workers is not None:
                    self._n_workers[label] = n_workers
            time.sleep(_COUNT_EVERY_S)


def workers_of(executor: ParslExecutor) -> int | None:
    """Return how many workers an executor has now; None where it cannot tell."""
    if not isinstance(executor, HighThroughputExecutor):
        return None
    n_workers: int = sum(manager["worker_count"] for manager in executor.connected_managers() if manager["active"])
    return n_workers


def why_it_ended(exit_code: int | None) -> str:
    """Return a sentence about a task server that is not alive any more."""
    if exit_code == EXIT_INTERCHANGE_DIED:
        return "a Parsl interchange ended, so no task can reach its workers"
    if exit_code is not None and exit_code < 0:
        return f"the task server was killed by {signal.Signals(-exit_code).name}"
    return f"the task server ended by itself (exit {exit_code})"


def stop(server: SafeTaskServer, queues: Queues, timeout_s: float = 10.0) -> None:
    """End the task server in order, or by force when it takes longer than ``timeout_s``."""
    if server.is_alive():
        # Sending can block when nobody reads the pipe any more.
        threading.Thread(target=_ask_to_end, args=(queues,), name="ask-to-end", daemon=True).start()
        server.join(timeout_s)
    if server.is_alive():
        logger.warning("the task server did not end within %g s; killing it", timeout_s)
        server.kill()
        server.join(5.0)


def _ask_to_end(queues: Queues) -> None:
    try:
        queues.send_kill_signal()
    except (OSError, RedisError) as error:
        logger.warning("the task server cannot be asked to end: %s", error)
