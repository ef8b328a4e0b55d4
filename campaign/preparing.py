"""Prepare the molecular system in a process of its own; minimising a large one takes minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from campaign.aside import aside
from tasks.prepared import PreparedSystem
from tasks.systems import SystemSpec, prepare


def prepare_aside(spec: SystemSpec, interrupted: Callable[[], bool]) -> tuple[PreparedSystem, list[str]] | None:
    """Return the prepared system, and what was noted while it was made; None if it was interrupted.

    Raises
    ------
    BadInput
        As `tasks.systems.prepare`.
    """
    answer = aside(partial(_prepare, spec), f"system {spec.name} cannot be prepared", interrupted)
    if answer is None:
        return None
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


def _prepare(spec: SystemSpec) -> tuple[dict[str, np.ndarray], list[str]]:
    notes = _Notes()
    logger = logging.getLogger("tasks")
    logger.setLevel(logging.INFO)
    logger.addHandler(notes)
    return prepare(spec).to_arrays(), notes.texts
