"""What trace lines come to, kept so that it does not grow with them."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from campaign.trace_files import TIMES, worker_of
from campaign.watch.bins import MOST_BINS, Bins, Window
from campaign.watch.view import Latency, Segment

# How long "the last minutes" are.
RECENT_S = 300.0

# The newest so many results say where time goes.
_LATENCY_OVER = 200

_N_RECENT = 12

# Of elastic sites, whose workers come and go for ever, those that were heard of last.
_MOST_WORKERS = 4096

# A step of training curves in the page.
_FIRST_BIN_S = 1.0

_PARTS = ("server_s", "queue_s", "compute_s", "store_s", "return_s", "notify_s")


class SiteTally:
    """What one topic's results at one site come to.

    Attributes
    ----------
    last_ended
        When each worker ended what it ran last, UNIX s, the newest last.
    """

    def __init__(self) -> None:
        self.n_results = self.n_failed = 0
        self.busy = Bins(_FIRST_BIN_S)
        self.recent = Window(RECENT_S)
        self.last_ended: dict[str, float] = {}

    def add(self, success: bool, worker: str | None, started: float | None, ended: float | None) -> None:
        """Take in a result."""
        self.n_results += success
        self.n_failed += not success
        if started is None or ended is None:
            return
        self.busy.add_span(started, ended)
        self.recent.add_span(started, ended)
        if worker is not None:
            ended = max(ended, self.last_ended.pop(worker, ended))
            self.last_ended[worker] = ended
            if len(self.last_ended) > _MOST_WORKERS:
                del self.last_ended[next(iter(self.last_ended))]


class TopicTally:
    """What the trace of one topic comes to; topics add what is their own."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.n_unreadable = 0
        self.sites: dict[str, SiteTally] = {}
        self._waits: deque[Sequence[float]] = deque(maxlen=_LATENCY_OVER)

    def take(self, lines: Iterable[bytes]) -> None:
        """Take in lines; one that is no trace line is counted."""
        for line in lines:
            try:
                told = json.loads(line, parse_constant=lambda _: None)
                self._take(told, told["task_info"])
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
                self.n_unreadable += 1

    def latency(self) -> Latency | None:
        """Return where the time of the newest results went."""
        if not self._waits:
            return None
        medians = np.median(np.array(self._waits), axis=0)
        return Latency(self.topic, len(self._waits), dict(zip(_PARTS, map(float, medians), strict=True)))

    def _take(self, told: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        times, success = told["timestamp"], bool(told["success"])
        site = self.sites.setdefault(str(info["site"]), SiteTally())
        ran = _number(times.get("compute_started")), _number(times.get("compute_ended"))
        site.add(success, worker_of(told), *ran)
        if success and (waits := _waits(times, info)) is not None:
            self._waits.append(waits)
        # What came too late was found by another attempt.
        if success and not info.get("late"):
            self.found(info, _number(times.get("result_received")))

    def found(self, info: Mapping[str, Any], received: float | None) -> None:
        """Take in what a result says of itself."""


class SegmentTally(TopicTally):
    """Segments, how fast they come, and the newest of them.

    Attributes
    ----------
    pace
        Simulated ps over the time when results came, UNIX s.
    """

    def __init__(self) -> None:
        super().__init__("simulate")
        self.pace = Bins(_FIRST_BIN_S)
        self.newest: deque[Segment] = deque(maxlen=_N_RECENT)

    def found(self, info: Mapping[str, Any], received: float | None) -> None:
        """Take in a segment."""
        if received is not None and (length := _number(info["simulated_ps"])) is not None:
            self.pace.add(received, length)
        self.newest.append(
            Segment(
                segment_id=int(info["segment_id"]), attempt=int(info["attempt"]), site=str(info["site"]),
                parent_id=info["parent_id"], parent_frame=info["parent_frame"], walker_id=info["walker_id"],
                iteration=info.get("iteration", 0), steered=bool(info["steered"]), novelty=_number(info["novelty"]),
                simulated_ps=_number(info["simulated_ps"]), mean_temperature_K=_number(info["mean_temperature_K"]),
                received=received,
            )
        )  # fmt: skip


class InferenceTally(TopicTally):
    """What inference found, over the frames that it looked at.

    Attributes
    ----------
    n_frames
        Looked at so far.
    coverage, novelty
        Cells visited, and the mean novelty of segments when they were looked at, over frames looked at.
    """

    def __init__(self) -> None:
        super().__init__("infer")
        self.n_frames = 0
        self.coverage = Bins(1.0)
        self.novelty = Bins(1.0)

    def found(self, info: Mapping[str, Any], received: float | None) -> None:
        """Take in an inference."""
        self.n_frames += int(info["n_frames"])
        if (coverage := _number(info["coverage"])) is not None:
            self.coverage.add(self.n_frames, coverage)
        novelty = [value for value in map(_number, info.get("novelty") or ()) if value is not None]
        if novelty:
            self.novelty.add(self.n_frames, sum(novelty) / len(novelty))


class TrainingTally(TopicTally):
    """Models, and how the newest one was learnt.

    Attributes
    ----------
    losses
        Of the newest, by name, one value per epoch; thinned where there are many.
    last_losses
        Of each version the values after its last epoch, by name.
    """

    def __init__(self) -> None:
        super().__init__("train")
        self.version: int | None = None
        self.n_frames = 0
        self.n_epochs = 0
        self.losses: dict[str, list[float]] = {}
        self.last_losses: dict[str, Bins] = {}

    def found(self, info: Mapping[str, Any], received: float | None) -> None:
        """Take in a model."""
        version, losses = int(info["model_version"]), dict(info.get("losses") or {})
        self.version, self.n_frames = version, int(info["n_frames"])
        self.n_epochs = max(map(len, losses.values()), default=0)
        self.losses = {name: _thinned(values) for name, values in losses.items()}
        for name, values in self.losses.items():
            if values:
                self.last_losses.setdefault(name, Bins(1.0)).add(version, values[-1])


def tally_of(topic: str) -> TopicTally:
    """Return a tally for a topic's trace, with nothing in it."""
    own = {"simulate": SegmentTally, "infer": InferenceTally, "train": TrainingTally}
    return own[topic]() if topic in own else TopicTally(topic)


def _number(value: object) -> float | None:
    """Return a value that can be drawn."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _waits(times: Mapping[str, Any], info: Mapping[str, Any]) -> Sequence[float] | None:
    """Return how long each part of a result's life took, as `_PARTS`, s."""
    at = [_number(times.get(name)) for name in TIMES]
    if None in at:
        return None
    created, came, started, ended, returned, received = (each for each in at if each is not None)
    seconds = info.get("seconds") or {}
    store = seconds.get("fetch", 0.0) + seconds.get("ship", 0.0)
    return came - created, started - came, ended - started - store, store, returned - ended, received - returned


def _thinned(values: Sequence[object]) -> list[float]:
    """Return values so that the page has room for them, the last among them."""
    found = [value for value in map(_number, values) if value is not None]
    step = math.ceil(len(found) / MOST_BINS) or 1
    return found[::-step][::-1]
