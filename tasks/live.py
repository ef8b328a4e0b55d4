"""All who look at a segment while it runs, in the worker that runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks.announce import Announcement, announce
from tasks.companion import Companion
from tasks.feed import Feeder
from tasks.imd import ImdServer
from tasks.indices import Indices
from tasks.messages import SegmentSpec, Watch, Watched
from tasks.onlooker import Onlooker, Stop

__all__ = ["Audience", "Stop"]


class Audience:
    """Shows a segment's frames to whoever looks at them, as they are made.

    Parameters
    ----------
    stored : ndarray of shape (n_stored,), int64
        Atoms that trajectories keep: those are shown.
    indices
        What a model sees of frames, and whether these have a box.

    Raises
    ------
    BadInput
        When no server can listen on the address for IMD clients.
    """

    def __init__(self, spec: SegmentSpec, watch: Watch, stored: np.ndarray, indices: Indices) -> None:
        self._watch = watch
        self._indices = indices
        self._dynamics = spec.dynamics
        self._stored = stored
        self._n_shown = 0
        self._onlooker = (
            None if watch.on_frames is None else Onlooker(watch, watch.on_frames, spec.dynamics.frame_ps, stored)
        )
        self._imd: ImdServer | None = None
        self._told: Path | None = None
        self._companion: Companion | None = None
        if watch.imd_host is not None:
            self._serve(spec, watch.imd_host, periodic=indices.box is not None)
        self._feeder: Feeder | None = None
        if watch.feed is not None:
            self._feeder = Feeder(spec, watch.feed, watch.when_slow, may_stop=watch.may_stop)
        self._in_batches = self._onlooker is not None or self._feeder is not None

    def _serve(self, spec: SegmentSpec, host: str, *, periodic: bool) -> None:
        self._imd = ImdServer(
            host,
            n_atoms=len(self._stored),
            timestep_ps=spec.dynamics.timestep_ps,
            periodic=periodic,
            frame_steps=spec.dynamics.frame_steps,
            when_slow=self._watch.when_slow,
        )
        if spec.run_dir is not None:
            served = Announcement(spec.segment_id, spec.attempt, self._imd.host, self._imd.port)
            self._told = announce(spec.run_dir, served)
        if self._watch.command is not None:
            self._companion = Companion(self._watch.command, spec, self._imd)
            self._companion.wait_until_it_listens()

    @property
    def stopped(self) -> bool:
        """Whether the segment ends with the frames that it has."""
        killed = self._watch.may_stop and self._imd is not None and self._imd.killed
        by_campaign = self._feeder is not None and self._feeder.stopped
        return killed or by_campaign or (self._onlooker is not None and self._onlooker.stopped)

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
        if self._imd is not None:
            box = None if boxes is None else boxes[-1]
            self._imd.publish(positions[-1, self._stored], box, step=n * self._dynamics.frame_steps)
        if not self._in_batches:
            return
        if n - first == self._watch.every or n == self._dynamics.n_frames:
            self._show_batch(first, positions[first:], None if boxes is None else boxes[first:])
            self._n_shown = n

    def _show_batch(self, first: int, positions: np.ndarray, boxes: np.ndarray | None) -> None:
        if not np.isfinite(positions).all():
            return  # the segment is about to fail
        if self._onlooker is not None:
            self._onlooker.look(first, positions, boxes)
        # Of the last batch the segment's result tells.
        if self._feeder is not None and first + len(positions) < self._dynamics.n_frames:
            self._feeder.send(first, self._indices.points(positions, boxes))

    def leave(self) -> None:
        """Let go of clients, once the segment has ended: they are sent what they have yet to be sent."""
        if self._told is not None:
            self._told.unlink(missing_ok=True)
        if self._imd is not None:
            self._imd.close()
        if self._companion is not None:
            self._companion.leave()
        if self._feeder is not None:
            self._feeder.leave()

    def watched(self) -> Watched:
        """Return what came of it all, once they have left."""
        watched = Watched() if self._onlooker is None else self._onlooker.watched()
        return replace(
            watched,
            stopped=self.stopped,
            imd=None if self._imd is None else self._imd.counts,
            command=None if self._companion is None else self._companion.how,
            fed=None if self._feeder is None else self._feeder.fed(),
        )
