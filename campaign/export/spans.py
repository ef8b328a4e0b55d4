"""From when to when things were so, and how many of them at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class Spans:
    """Spans of time in whole microseconds."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._starts, self._ends = array("q"), array("q")
        for start, end in spans:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add one; of two clocks the end may be before the start, and it counts as no time."""
        self._starts.append(start)
        self._ends.append(max(start, end))

    @property
    def whole(self) -> tuple[int, int]:
        """From the first start to the last end."""
        return min(self._starts), max(self._ends)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return when it changes how many there are at a time, and how many there are from then on.

        Returns
        -------
        times, levels : ndarray of shape (n,), int64
        """
        times, places = np.unique(np.concatenate([self._starts, self._ends]).astype(np.int64), return_inverse=True)
        steps = np.repeat([1, -1], len(self._starts))
        changes = np.bincount(places, steps, len(times)).astype(np.int64)
        return times[changes != 0], np.cumsum(changes)[changes != 0]


def utilisation(workers: Sequence[Spans]) -> tuple[np.ndarray, np.ndarray]:
    """Return which part of some workers is busy: when that changes, and the fraction from then on.

    A worker counts from its first task to the end of its last.

    Parameters
    ----------
    workers
        When each of them, of which there is one at least, was busy.

    Returns
    -------
    times : ndarray of shape (n,), int64
    fractions : ndarray of shape (n,), float64
    """
    busy = Spans(span for worker in workers for span in worker).levels()
    there = Spans(worker.whole for worker in workers).levels()
    times = np.union1d(busy[0], there[0])
    n_busy, n_there = (_at(times, *levels) for levels in (busy, there))
    # The tasks of a bundle that failed as a whole have its times, all of them.
    return times, np.minimum(n_busy, n_there) / np.maximum(n_there, 1)


def _at(when: np.ndarray, times: np.ndarray, levels: np.ndarray) -> np.ndarray:
    before = np.searchsorted(times, when, "right")
    return np.concatenate([[0], levels])[before]
