"""A campaign at one moment, as pages and terminals show it: plain data that become JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Latency:
    """Where the time of a topic's newest results went: the medians of its parts, s."""

    topic: str
    n: int
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that came back."""

    segment_id: int
    attempt: int
    site: str
    parent_id: int | None
    parent_frame: int | None
    walker_id: int | None
    iteration: int
    steered: bool
    novelty: float | None
    simulated_ps: float | None
    mean_temperature_K: float | None
    received: float | None


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a topic at a site.

    Attributes
    ----------
    slots
        How many there are, as the campaign says, or else as many as were seen.
    seen
        That a result came from.
    out, busy
        Tasks (bundles of them) that were sent and did not come back, and workers that they keep busy.
    utilisation
        Compute time over slots times the time from first to last segment, as in ``summary.json``; None before that.
    recent
        The same over the last minutes; None once the campaign has ended.
    begin, width_s, strip
        Share of all workers that was busy, in bins of that width from then on (UNIX s).
    """

    site: str
    topic: str
    slots: int
    seen: int
    out: int
    busy: int
    n_results: int
    n_failed: int
    utilisation: float | None
    recent: float | None
    begin: float
    width_s: float
    strip: Sequence[float]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast results come: simulated ns per day in bins of that width from then on (UNIX s)."""

    begin: float
    width_s: float
    ns_per_day: Sequence[float]


@dataclass(frozen=True, slots=True)
class Learning:
    """What learning found.

    Attributes
    ----------
    coverage, novelty
        Cells visited, and mean novelty of new segments, over the simulated ns looked at.
    model_version, n_frames, n_epochs, losses
        Of the newest model: what it was trained on, and its losses by name, from the first epoch to the last.
    last_losses
        By name, the losses after the last epoch over model versions.
    """

    coverage: Sequence[tuple[float, float]]
    novelty: Sequence[tuple[float, float]]
    model_version: int | None
    n_frames: int
    n_epochs: int
    losses: Mapping[str, Sequence[float]]
    last_losses: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What weighted ensembles have come to.

    Attributes
    ----------
    iterations, walkers
        That ended, and of the last that did, by ensemble.
    flux_per_ps
        Mean weight that reaches the target in a time, what comes first left out; None before any has.
    fluxes
        Over iterations, the mean over ensembles.
    """

    pcoord: str
    target: str | None
    iterations: Sequence[int]
    walkers: Sequence[int]
    flux_per_ps: float | None
    fluxes: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class View:
    """A campaign at one moment. What ``summary.json`` has too is the same once the campaign has ended.

    Attributes
    ----------
    status
        As `campaign.status` tells it.
    over
        Whether no process works on it any more.
    elapsed_s
        Wall time up to the newest decision, over all processes.
    began
        When the process began that works on it, or did last, UNIX s.
    tasks
        States of tasks, by kind: how many are in each.
    errors
        The newest failures.
    live
        Segments that IMD clients can follow.
    summary
        What only ``summary.json`` knows; None before it is there.
    behind
        Share of the traces that is not read yet.
    trouble
        What could not be read.
    """

    run: str
    status: str
    over: bool
    reason: str | None
    system: str
    policy: str
    seed: int
    processes: int
    began: float | None
    elapsed_s: float
    segments: int
    target: int | None
    simulated_ns: float
    frames: int
    ns_per_day: float | None
    segments_per_hour: float | None
    failures: Mapping[str, int]
    quarantined: int
    model_versions: int
    inferences: int
    steered_fraction: float
    coverage: Mapping[str, Any] | None
    worker_utilisation: Mapping[str, Mapping[str, float]]
    hooks: Mapping[str, int]
    on_frames: Mapping[str, int]
    stream: Mapping[str, int]
    workers: Sequence[Workers]
    pace: Pace
    learning: Learning
    latencies: Sequence[Latency]
    ensemble: Ensemble | None
    tasks: Mapping[str, Mapping[str, int]]
    errors: Sequence[Mapping[str, Any]]
    live: Sequence[Mapping[str, Any]]
    newest: Sequence[Segment]
    summary: Mapping[str, Any] | None
    behind: float
    trouble: Sequence[str]

    def as_json(self) -> bytes:
        """Return what a page reads."""
        return json.dumps(self, default=_plain, separators=(",", ":")).encode()


def _plain(value: Any) -> dict[str, Any]:
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} cannot be told in JSON")
    return {field.name: getattr(value, field.name) for field in fields(value)}
