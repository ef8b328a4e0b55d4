"""How fast the campaign's own system runs on this machine, from a few seconds of it."""

from __future__ import annotations

import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import openmm

from campaign.aside import aside
from tasks.errors import BadInput, TaskFailed
from tasks.messages import Dynamics, SegmentSpec, StoreSpec
from tasks.prepared import PreparedSystem
from tasks.simulate import run_segment
from tasks.transport import ship

# Dynamics as long as this tell the speed; a slower step is timed alone.
_ENOUGH_S = 0.5
_MOST_GROWTH = 10


@dataclass(frozen=True, slots=True)
class Timing:
    """The speed of one segment at a time, on one thread or device, of a Context that is warm.

    Attributes
    ----------
    platform
        OpenMM's name.
    ps_per_s
        Simulated time per wall time of the dynamics, the frames taken included.
    fixed_s
        What a segment takes besides: its start, its trajectory, its way into a file store.
    """

    host: str
    platform: str
    ps_per_s: float
    fixed_s: float

    def seconds(self, dynamics: Dynamics) -> float:
        """Return the wall time of a segment."""
        return max(self.fixed_s + dynamics.segment_ps / self.ps_per_s, dynamics.min_seconds)


def time_aside(
    prepared: PreparedSystem,
    dynamics: Dynamics,
    trajectory_format: Literal["dcd", "xtc"],
    folder: Path,
    interrupted: Callable[[], bool],
) -> Timing | None:
    """Return the speed, measured in a process of its own; None if it was interrupted.

    Parameters
    ----------
    folder
        Takes what the timed segments write.

    Raises
    ------
    BadInput
        When the system cannot be run here.
    """
    work = partial(_time_segments, prepared, dynamics, trajectory_format, folder)
    return aside(work, f"system {prepared.name} cannot be run", interrupted)


def _time_segments(
    prepared: PreparedSystem, dynamics: Dynamics, trajectory_format: Literal["dcd", "xtc"], folder: Path
) -> Timing:
    """Return the speed of segments as a worker runs them, of as many steps as a short timing needs."""
    tempfile.tempdir = str(folder)  # whoever ends this process removes the folder
    warnings.simplefilter("ignore", UserWarning)  # MDAnalysis misses a box
    store = StoreSpec("timing", "file", (("store_dir", str(folder / "timing")),))
    spec = lone_segment(prepared, _shortened(dynamics, 1), store, folder, trajectory_format)
    try:
        return _timed(spec, dynamics)
    except (TaskFailed, openmm.OpenMMException) as error:
        raise BadInput(f"system {prepared.name} cannot be run on {dynamics.platform}: {error}") from error


def lone_segment(
    prepared: PreparedSystem,
    dynamics: Dynamics,
    store: StoreSpec,
    folder: Path,
    trajectory_format: Literal["dcd", "xtc"] = "dcd",
) -> SegmentSpec:
    """Return a segment from the first basis state that is of no campaign; its system and start are shipped."""
    return SegmentSpec(
        segment_id=0,
        attempt=1,
        walker_id=0,
        iteration=0,
        parent_id=None,
        parent_frame=None,
        system=ship(prepared.to_arrays(), store),
        system_id=prepared.digest,
        start=ship(prepared.basis(), store),
        start_row=0,
        seed=1,
        dynamics=dynamics,
        store=store,
        run_dir=str(folder),
        trajectory_format=trajectory_format,
    )


def _timed(spec: SegmentSpec, whole: Dynamics) -> Timing:
    run_segment(spec)  # the first makes the Context
    while True:
        dynamics = spec.dynamics
        seconds = run_segment(spec).seconds
        if seconds["integrate"] >= _ENOUGH_S or dynamics.n_steps == whole.n_steps:
            break
        growth = min(_MOST_GROWTH, max(2.0, _ENOUGH_S / seconds["integrate"]))
        spec = replace(spec, dynamics=_shortened(whole, int(growth * dynamics.n_steps)))
        run_segment(spec)
    samples = [seconds]
    began = time.perf_counter()
    while time.perf_counter() - began < _ENOUGH_S - seconds["integrate"]:
        samples.append(run_segment(spec).seconds)
    integrate = median(sample["integrate"] for sample in samples)
    fixed = median(sum(sample.values()) - sample["integrate"] for sample in samples)
    return Timing(platform.node(), dynamics.platform, dynamics.segment_ps / integrate, fixed)


def _shortened(whole: Dynamics, n_steps: int) -> Dynamics:
    """Return the dynamics of as many steps, or a little less so that frames divide them, at most of a segment."""
    n_steps = min(n_steps, whole.n_steps)
    frame_steps = min(whole.frame_steps, n_steps)
    return replace(whole, n_steps=n_steps // frame_steps * frame_steps, frame_steps=frame_steps, min_seconds=0.0)
