"""All who look at a segment while it runs, in the worker that runs it."""

from __future__ import annotations

import numpy as np

from tasks.messages import Dynamics, Watch, Watched
from tasks.onlooker import Onlooker, Stop

__all__ = ["Audience", "Stop"]


class Audience:
    """Shows a segment's frames to whoever looks at them, as they are made.

    Parameters
    ----------
    stored : ndarray of shape (n_stored,), int64
        Atoms that trajectories keep: those are shown.
    """

    def __init__(self, watch: Watch, dynamics: Dynamics, stored: np.ndarray) -> None:
        self._every = watch.every
        self._n_frames = dynamics.n_frames
        self._n_shown = 0
        self._onlooker = Onlooker(watch, dynamics.frame_ps, stored)

    @property
    def stopped(self) -> bool:
        """Whether the segment ends with the frames that it has."""
        return self._onlooker.stopped

    def see(self, positions: np.ndarray, boxes: np.ndarray | None) -> None:
        """Show the newest frame; to some only once a batch is whole, or the segment.

        Parameters
        ----------
        positions : ndarray of shape (n_frames, n_atoms, 3), float32
            Of all frames so far, in nm.
        boxes : ndarray of shape (n_frames, 3, 3), float32
            Box vectors in nm; None where the system is not periodic.
        """
        n, first = len(positions), self._n_shown
        if n - first == self._every or n == self._n_frames:
            self._onlooker.look(first, positions[first:], None if boxes is None else boxes[first:])
            self._n_shown = n

    def leave(self) -> Watched:
        """Return what came of it, once the segment has ended."""
        return self._onlooker.watched()
