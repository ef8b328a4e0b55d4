"""Calling what a user wrote: within a time, and taking nothing back that cannot be kept."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import numpy as np


class TimeIsUp(BaseException):
    """Not an `Exception`, which the user's own code may catch."""


@contextmanager
def bounded(timeout_s: float) -> Iterator[None]:
    """Raise `TimeIsUp` in what takes too long, where a signal can: elsewhere the task's own deadline is the bound."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def numbers(returned: object) -> dict[str, float]:
    """Return names and finite numbers as plain ones; None stands for none.

    Raises
    ------
    TypeError
        For anything else; it says what to return instead.
    """
    if returned is None:
        return {}
    if not isinstance(returned, Mapping) or not all(
        isinstance(name, str) and is_number(value) for name, value in returned.items()
    ):
        raise TypeError(f"returned {returned!r:.200}: return a dictionary of names and finite numbers, or None")
    return {name: float(value) for name, value in returned.items()}


def is_number(value: object) -> bool:
    """Return whether it is a finite number that a ledger can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number beyond what SQLite's REAL holds
        return False
