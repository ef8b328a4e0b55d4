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
from collections.abc import Callable, Iterable
from typing import Any

import parsl
from colmena.models.methods import PythonMethod
from colmena.task_server.parsl import ParslTaskServer
from parsl.config import Config
from redis import RedisError

from agents.queues import Queues

logger = logging.getLogger(__name__)

EXIT_INTERCHANGE_DIED = 70

_LOOK_EVERY_S = 0.5


class SafeTaskServer(ParslTaskServer):
    """A Parsl task server that cannot fail in silence.

    Parameters
    ----------
    methods
        ``(name, function, executor label)`` of each task.
    life_line
        File descriptor by which the guardian knows the main process alive; a fork of that must not hold it open.
    """

    def __init__(
        self,
        methods: Iterable[tuple[str, Callable[..., Any], str]],
        queues: Queues,
        config: Config,
        life_line: int,
    ) -> None:
        described = [(PythonMethod(function, name), {"executors": [label]}) for name, function, label in methods]
        super().__init__(described, queues, config)
        self._life_line = life_line

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

    def _cleanup(self) -> None:
        """End Parsl without waiting for tasks: whoever sent the kill signal has stopped waiting for them."""
        parsl.dfk().cleanup()

    def _mind_interchanges(self) -> None:
        interchanges = {
            label: executor.interchange_proc
            for label, executor in parsl.dfk().executors.items()
            if getattr(executor, "interchange_proc", None) is not None
        }
        while True:
            for label, process in interchanges.items():
                if process.poll() is not None and not parsl.dfk().cleanup_called:
                    logger.error("the interchange of executor %s ended (exit %s)", label, process.returncode)
                    os._exit(EXIT_INTERCHANGE_DIED)
            time.sleep(_LOOK_EVERY_S)


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
