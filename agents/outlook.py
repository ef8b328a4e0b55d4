"""Whether a campaign fits on this machine, and how long it will take: the dry run's answer."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from agents.forecast import Forecast, forecast, planned_segments
from agents.launch import Plan
from agents.state import Destination
from campaign.control import control_settings
from campaign.timing import Timing
from tasks.errors import BadInput
from tasks.messages import Topic
from tasks.platforms import GPU_PLATFORMS

# Workers come up, import their libraries and answer a probe; measured on two cores.
_WORKERS_START_S = 5.0

# CPU that a task takes on its way through Colmena and Parsl; bundles of short segments share it.
_TASK_S = 0.006


@dataclass(frozen=True, slots=True)
class Machine:
    """What segments share here.

    Attributes
    ----------
    simulates, learns
        Whether segments, and training and inference, run on this machine.
    elsewhere
        Sites of segments that are other machines, where some run here.
    """

    cores: int
    gpus: int
    simulates: bool
    learns: bool
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a dry run tells.

    Attributes
    ----------
    walkers
        At least and at most; they differ where there are weighted ensembles.
    is_bound
        Whether segments, and all that follows from them, are the most that weighted ensembles can run.
    at_once
        Segments that run at once, as if each had a core or device of its own.
    wall_s
        Estimated, the time to start up and any control included.
    free_bytes
        On the run directory's disk.
    stores_on_disk
        Peak of the file stores that lie on that disk.
    fits
        Whether it fits whatever happens; what cannot fit has no outlook.
    notes
        What the estimate assumes.
    """

    ahead: Forecast
    walkers: tuple[int, int]
    is_bound: bool
    timing: Timing
    seconds_per_segment: float
    at_once: float
    wall_s: float
    free_bytes: int
    stores_on_disk: int
    fits: bool
    notes: tuple[str, ...]

    @property
    def disk_bytes(self) -> dict[str, int]:
        """Bytes on the run directory's disk, by kind."""
        return {**self.ahead.disk_bytes, "stores": self.stores_on_disk}

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run --json`` prints.

        ``segments, simulated_ns, frames, inferences, trainings``: expected, the last two at most, and all of them
        where ``is_bound`` · ``walkers``: at most ·
        ``disk_bytes``: ``{trajectories, models, references, ledger, traces, logs, stores, control?, total, free}`` ·
        ``store_bytes``: ``{topic: {kind, total, peak}}`` · ``thinker_bytes``: at most · ``wall_s`` ·
        ``timing``: ``{host, platform, ps_per_s, seconds_per_segment, at_once}`` · ``fits``: true; false where
        weighted ensembles may grow too large; what cannot fit is refused · ``notes``: sentences.
        """
        disk = self.disk_bytes
        return {
            "segments": self.ahead.segments,
            "simulated_ns": self.ahead.simulated_ns,
            "frames": self.ahead.frames,
            "inferences": self.ahead.inferences,
            "trainings": self.ahead.trainings,
            "is_bound": self.is_bound,
            "walkers": self.walkers[1],
            "disk_bytes": {**disk, "total": sum(disk.values()), "free": self.free_bytes},
            "store_bytes": {
                topic: {"kind": use.kind, "total": use.total, "peak": use.peak}
                for topic, use in self.ahead.store_bytes.items()
            },
            "thinker_bytes": self.ahead.thinker_bytes,
            "wall_s": self.wall_s,
            "timing": {
                "host": self.timing.host,
                "platform": self.timing.platform,
                "ps_per_s": self.timing.ps_per_s,
                "seconds_per_segment": self.seconds_per_segment,
                "at_once": self.at_once,
            },
            "fits": self.fits,
            "notes": list(self.notes),
        }

    def lines(self) -> Iterator[str]:
        """Yield a short table."""
        ahead, disk = self.ahead, self.disk_bytes
        most, at_once = ("at most " if one else "" for one in (self.is_bound, self.walkers[0] < self.walkers[1]))
        yield f"segments   {most}{ahead.segments}: {ahead.simulated_ns:.3f} ns, {ahead.frames} frames"
        yield f"learning   at most {ahead.inferences} inferences, {ahead.trainings} trainings"
        kinds = ", ".join(f"{name} {in_words(n)}" for name, n in disk.items() if n)
        yield f"disk       {most}{in_words(sum(disk.values()))} of {in_words(self.free_bytes)} free: {kinds}"
        for topic, use in ahead.store_bytes.items():
            kind = "messages" if use.kind == "inline" else use.kind
            yield f"{topic:<10} {most}{in_words(use.total)} through {kind}, {at_once}{in_words(use.peak)} at once"
        yield f"Thinker    at most {in_words(ahead.thinker_bytes)}"
        yield f"speed      {self.timing.ps_per_s:.3g} ps/s on {self.timing.platform} of {self.timing.host}"
        yield f"wall time  about {_duration(self.wall_s)}, {self.at_once:.3g} segments at once"
        yield from self.notes


def look_ahead(plan: Plan, timing: Timing, machine: Machine, ready_s: float, notes: tuple[str, ...] = ()) -> Outlook:
    """Return what the campaign will take.

    Parameters
    ----------
    ready_s
        What it took to come so far, preparing the system included.
    notes
        What else is to be told.

    Raises
    ------
    BadInput
        When it cannot fit, or its time is too short for one segment.
    """
    settings = plan.settings
    seconds, at_once = timing.seconds(plan.dynamics), segments_at_once(plan, machine)
    pace, before_s = (seconds + _TASK_S) / at_once, _equilibration_s(plan, timing, at_once)
    fewest, most = plan.n_walkers
    # Nobody knows whether all bins will be reached: refused is what does not fit with one, the rest is told.
    at_least = _foresee(plan, _segments(plan, seconds, pace, before_s, machine, fewest), fewest)
    for sentence in chain(_misfits(plan, at_least), _full_redis(plan, at_least)):
        raise BadInput(sentence)
    segments = _segments(plan, seconds, pace, before_s, machine, most)
    is_bound = _segments_of_ensembles(plan, most) == segments
    ahead = _foresee(plan, segments, most)
    doubts = tuple(f"it may not fit: {each}" for each in chain(_misfits(plan, ahead), _full_redis(plan, ahead)))
    runs = 1 + settings.control
    return Outlook(
        ahead,
        (fewest, most),
        is_bound,
        timing,
        seconds,
        at_once,
        ready_s + before_s + runs * (_WORKERS_START_S + segments * pace),
        shutil.disk_usage(plan.run_dir.path).free,
        0 if _store_apart(plan) else _peak(ahead, "file"),
        not doubts,
        (*notes, *_notes(plan, machine, most, is_bound), *doubts),
    )


def refuse_what_cannot_fit(plan: Plan) -> None:
    """Refuse a campaign whose files or objects cannot fit; one that only time ends is not known well enough.

    An ensemble is refused for what one bin takes: it may reach no other.

    Raises
    ------
    BadInput
        With the figures and the remedy.
    """
    segments = planned_segments(plan.settings, plan.dynamics)
    if segments is not None and plan.settings.max_minutes is None:
        fewest, _ = plan.n_walkers
        for sentence in _misfits(plan, _foresee(plan, segments, fewest)):
            raise BadInput(sentence)


def segments_at_once(plan: Plan, machine: Machine) -> float:
    """Return how many segments run at once, at most, as if each had a core, or a device, of its own."""
    slots = sum(place.slots for place in plan.places)
    _, walkers = plan.n_walkers
    busy = min(slots, walkers)
    if not machine.simulates:
        return busy
    n_here = sum(place.slots for place in plan.places if place.site not in machine.elsewhere)
    # Walkers that are too few for all are spread over the sites.
    here = busy * n_here / slots
    return busy - here + _at_once_here(plan, machine, here)


def _at_once_here(plan: Plan, machine: Machine, busy: float) -> float:
    if plan.dynamics.platform in GPU_PLATFORMS:
        return min(busy, max(1, machine.gpus))
    learning = plan.destinations["infer"].slots if machine.learns and plan.settings.infer_every else 0
    return min(busy, machine.cores * busy / (busy + learning))


def in_words(n_bytes: int) -> str:
    """Return bytes for people: ``3.1 GB``."""
    for unit, size in {"TB": 1e12, "GB": 1e9, "MB": 1e6}.items():
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"


def _equilibration_s(plan: Plan, timing: Timing, at_once: float) -> float:
    """Return the wall time before the first segment; a quarter of an equilibration takes half steps."""
    if "equilibrate" not in plan.destinations:
        return 0.0
    each = 1.25 * plan.settings.equilibrate_ps / timing.ps_per_s
    return each * max(1.0, plan.prepared.n_starts / at_once)


def _segments(plan: Plan, seconds: float, pace: float, before_s: float, machine: Machine, walkers: int) -> int:
    """Return the segments that the limits ask for, as far as time allows.

    Parameters
    ----------
    pace
        Wall time per segment where as many run as can.
    before_s
        Wall time before the first.
    """
    target, minutes = planned_segments(plan.settings, plan.dynamics), plan.settings.max_minutes
    if (of_ensembles := _segments_of_ensembles(plan, walkers)) is not None:
        target = of_ensembles if target is None else min(of_ensembles, target)
    if minutes is None:
        assert target is not None  # without any limit, settings take the demonstration's
        return target
    if 60 * minutes < before_s + seconds and machine.simulates:
        takes = _duration(seconds) + (f" after {_duration(before_s)} of equilibration" if before_s else "")
        raise BadInput(
            f"--max-minutes {minutes:g} ends before one segment, which takes {takes} here: "
            f"give --max-minutes {math.ceil((before_s + seconds) / 30)} or more, or a shorter --segment-ps"
        )
    fitting = max(1, int((60 * minutes - before_s) / pace))
    return fitting if target is None else min(fitting, target)


def _segments_of_ensembles(plan: Plan, walkers: int) -> int | None:
    """Return the segments of weighted ensembles of so many walkers; None where iterations have no limit."""
    n_iterations = plan.settings.max_iterations
    return None if plan.method is None or n_iterations is None else n_iterations * walkers


def _foresee(plan: Plan, segments: int, walkers: int) -> Forecast:
    settings = plan.settings
    # Where one site of a pool writes trajectories to the run directory, they may all be written there.
    seen = next((place.run_dir for place in plan.places if place.run_dir is not None), None)
    simulate = replace(plan.destinations["simulate"], run_dir=seen)
    to: dict[Topic, Destination] = {**plan.destinations, "simulate": simulate}
    ahead = forecast(settings, plan.prepared, plan.dynamics, to, segments, walkers)
    if not settings.control:
        return ahead
    plain = control_settings(settings, segments)
    # It begins where equilibration ended.
    destinations: dict[Topic, Destination] = {
        topic: where for topic, where in to.items() if topic not in ("equilibrate", "gather")
    }
    return ahead.followed_by(forecast(plain, plan.prepared, plan.dynamics, destinations, segments, plain.walkers))


def _misfits(plan: Plan, ahead: Forecast) -> Iterator[str]:
    yield from ahead.misfits()
    store, reserve = _store_apart(plan), plan.settings.min_free_mb * 1_000_000
    passing = _peak(ahead, "file")
    needs = dict(ahead.disk_bytes) | ({} if store else {"stores": passing})
    fewer = "keep fewer atoms (--store) or frames (--frame-ps), give --trajectory-format xtc, ask for fewer ns"
    yield from _full_disk(plan.run_dir.path, needs, reserve, f"{fewer}, or name another --run-dir")
    if store is not None:
        yield from _full_disk(store, {"stores": passing}, reserve, "name another --ps-file-dir")


def _full_disk(path: Path, needs: dict[str, int], reserve: int, remedy: str) -> Iterator[str]:
    free, total = shutil.disk_usage(path).free, sum(needs.values())
    if total + reserve > free:
        most = max(needs, key=lambda name: needs[name])
        yield (
            f"the campaign needs {in_words(total)} on the disk of {path} ({in_words(needs[most])} of it {most}) and "
            f"--min-free-mb {reserve // 1_000_000} beside, and {in_words(free)} are free: {remedy}"
        )


def _full_redis(plan: Plan, ahead: Forecast) -> Iterator[str]:
    server = plan.crew.redis
    if server is None:
        return
    free, peak = server.free_bytes(), _peak(ahead, "redis")
    if free is not None and peak > free:
        yield (
            f"the stores need {in_words(peak)} of the Redis server at {server.host}:{server.port} at once, and "
            f"{in_words(free)} of memory are free: choose the backend file for a topic, a longer --frame-ps or fewer "
            f"{'--walkers' if plan.method is None else '--bins'}"
        )


def _peak(ahead: Forecast, kind: str) -> int:
    return sum(use.peak for use in ahead.store_bytes.values() if use.kind == kind)


def _store_apart(plan: Plan) -> Path | None:
    """Return the file store's directory if it lies on another disk than the run directory."""
    folders = [Path(dict(spec.options)["store_dir"]) for spec in plan.stores.specs if spec.kind == "file"]
    device = plan.run_dir.path.stat().st_dev
    return next((folder for folder in folders if folder.stat().st_dev != device), None)


def _notes(plan: Plan, machine: Machine, walkers: int, is_bound: bool) -> Iterator[str]:
    settings = plan.settings
    if is_bound:
        yield (
            "all of it at most: as if every bin were reached from the first iteration on, "
            f"by {walkers} walkers in all"
        )
    elif plan.method is not None:
        yield f"stores and busy workers are those of {walkers} walkers, the most: as if every bin were reached"
    for site in (place.site for place in plan.places):
        if machine.simulates and site not in machine.elsewhere:
            continue
        yield f"the speed was measured on this machine: that of site {site} may differ, and its queue is not counted"
    if machine.simulates and machine.learns and settings.infer_every:
        yield "learning is assumed to take its part of this machine's cores; nothing else is"
    if planned_segments(settings, plan.dynamics) is None and _segments_of_ensembles(plan, walkers) is None:
        yield "only time ends this campaign: its segments follow from the speed"
    if settings.control:
        yield "plain MD of equal length is counted in"


def _duration(seconds: float) -> str:
    for unit, size in {"days": 86_400, "h": 3600, "min": 60}.items():
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"
