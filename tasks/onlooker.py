"""The user's function that looks at a segment while it runs (``--on-frames``).

It is called between two steps of the integrator, so nothing has to be moved and no port has to be found; what it
takes is added to the segment's time. It may return `Stop`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.messages import Seen, Watch, Watched
from tasks.named import NotFound, import_named, told
from tasks.user_code import TimeIsUp, bounded, numbers

# What a segment's message has room for, as JSON; the newest are kept.
MAX_VALUES_BYTES = 3072


@dataclass(frozen=True, slots=True)
class Stop:
    """What a function of ``--on-frames`` returns to end its segment with the frames that it was given.

    Attributes
    ----------
    values
        Kept as those that it returns of any batch.
    """

    values: Mapping[str, float] = field(default_factory=dict)


class Onlooker:
    """Calls the user's function with batches of a segment's frames.

    A call that fails is an analysis that failed, and not the segment's failure.

    Attributes
    ----------
    stopped
        Whether it ended the segment.
    """

    def __init__(self, watch: Watch, function: str, frame_ps: float, stored: np.ndarray) -> None:
        self._watch = watch
        self._function = function
        self._frame_ps = frame_ps
        self._stored = stored
        self._n_batches = 0
        self._n_failed = 0
        self._error: str | None = None
        self._seen: deque[Seen] = deque()
        self._n_bytes = 0
        self._n_left_out = 0
        self.stopped = False

    def look(self, first: int, positions: np.ndarray, boxes: np.ndarray | None) -> None:
        """Show it a batch.

        Parameters
        ----------
        first
            Number of the batch's first frame in its segment, from 0.
        positions : ndarray of shape (n_frames, n_atoms, 3), float32
            All atoms, in nm; those that trajectories keep are shown.
        boxes : ndarray of shape (n_frames, 3, 3), float32
            Box vectors in nm; None where the system is not periodic.
        """
        times_ps = self._frame_ps * np.arange(first + 1, first + 1 + len(positions))
        # Copies: what it writes into must not be what is kept.
        shown = positions[:, self._stored], times_ps, None if boxes is None else boxes.copy()
        self._n_batches += 1
        try:
            with bounded(self._watch.timeout_s):
                returned = import_named(self._function, self._watch.here)(*shown)
            self._take(float(times_ps[-1]), returned)
        except TimeIsUp:
            self._fail(f"took longer than --hook-timeout {self._watch.timeout_s:g} s for a batch of frames")
        except NotFound as error:
            self._fail(f"cannot be used, for {error}")
        except _Unfit as error:
            self._fail(str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001  # counted, and told of
            self._fail(f"raised {told(error)}")

    def watched(self) -> Watched:
        """Return what came of it."""
        return Watched(
            self._n_batches, self._n_failed, self._error, self.stopped, tuple(self._seen), self._n_left_out
        )

    def _take(self, until_ps: float, returned: Any) -> None:
        stops = returned is Stop or isinstance(returned, Stop)
        if stops and not self._watch.may_stop:
            raise _Unfit("returned Stop, which would bias a weighted ensemble: return values alone")
        try:
            values = numbers({} if returned is Stop else returned.values if stops else returned)
        except TypeError as error:
            raise _Unfit(str(error)) from None
        self.stopped = stops
        if values:
            self._keep(Seen(until_ps, values))

    def _keep(self, seen: Seen) -> None:
        self._seen.append(seen)
        self._n_bytes += _size(seen)
        while self._n_bytes > MAX_VALUES_BYTES:
            self._n_bytes -= _size(self._seen.popleft())
            self._n_left_out += 1

    def _fail(self, what: str) -> None:
        self._n_failed += 1
        self._error = self._error or f"--on-frames {self._function} {what}"


class _Unfit(Exception):
    """What the user's function returned cannot be kept."""


def _size(seen: Seen) -> int:
    return len(json.dumps(seen.values)) + 16
