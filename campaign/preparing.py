"""Prepare the molecular system in a process of its own, which a signal can end at any moment.

Minimising a large system takes minutes inside one call of OpenMM. And the main process, which forks the task server,
stays free of OpenMM's threads.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

from tasks.errors import BadInput
from tasks.systems import PreparedSystem, SystemSpec, prepare

_LOOK_EVERY_S = 0.1


def prepare_aside(spec: SystemSpec, interrupted: Callable[[], bool]) -> tuple[PreparedSystem, list[str]] | None:
    """Return the prepared system, and what was noted while it was made; None if it was interrupted.

    Raises
    ------
    BadInput
        As `tasks.systems.prepare`.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_prepare, args=(spec, there), daemon=True)
    process.start()
    there.close()
    try:
        while not here.poll(_LOOK_EVERY_S):
            if interrupted():
                return None
        answer = here.recv()
    except EOFError:
        process.join(5)
        raise BadInput(
            f"system {spec.name} cannot be prepared: its process ended (exit {process.exitcode}), as for want of "
            "memory; try a smaller one"
        ) from None
    finally:
        process.kill()
        process.join()
        here.close()
    if isinstance(answer, BadInput):
        raise answer
    arrays, notes = answer
    return PreparedSystem.from_arrays(arrays), notes


class _Notes(logging.Handler):
    """Keeps messages for the log, which is not there yet."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.texts.append(record.getMessage())


def _prepare(spec: SystemSpec, answer: Connection) -> None:
    notes = _Notes()
    logger = logging.getLogger("tasks")
    logger.setLevel(logging.INFO)
    logger.addHandler(notes)
    try:
        answer.send((prepare(spec).to_arrays(), notes.texts))
    except BadInput as error:
        answer.send(BadInput(str(error)))
