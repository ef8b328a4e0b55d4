"""Run one segment of dynamics with OpenMM on a warm worker.

A worker keeps the Context of each system it has seen; a segment sets positions, velocities and random seeds anew, so
that an equal `SegmentSpec` gives equal dynamics, bit for bit on the Reference platform.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np

from tasks.coordinate import pack_pcoord, values
from tasks.engine import (
    Engine,
    box_of,
    energy_of,
    nan_named,
    positions_of,
    refuse_not_finite,
    velocities_of,
    warm_engine,
)
from tasks.errors import CoordinateFailed
from tasks.gather import gather_when_due
from tasks.indices import Indices
from tasks.live import Audience
from tasks.messages import Dynamics, SegmentResult, SegmentSpec
from tasks.trajectory import write_trajectory
from tasks.transport import fetch, ship


def run_segment(spec: SegmentSpec) -> SegmentResult:
    """Return one segment's energies, temperature and the addresses of its frames and end state.

    Raises
    ------
    NotFinite
        When a coordinate, velocity or the energy is NaN or infinite (the Reference platform does not say so itself).
    CoordinateFailed
        When the progress coordinate is not finite, or the user's function of it fails.
    """
    return begin_segment(spec)()


def begin_segment(spec: SegmentSpec) -> Callable[[], SegmentResult]:
    """Run a segment's dynamics; return what writes and ships its frames, which needs no Context any more.

    Raises
    ------
    NotFinite
        As `run_segment`.
    """
    began = time.perf_counter()
    engine = warm_engine(spec.system, spec.system_id, spec.dynamics)
    with ExitStack() as stack, nan_named(_name(spec)):
        start = fetch(spec.start)
        engine.begin(start, spec.start_row, spec.dynamics, spec.seed)
        ready = time.perf_counter()
        audience = _audience(engine, spec, stack)
        frames, temperature = _integrate(engine, spec.dynamics, audience)
        energy, end = _end_state(engine)
        positions = frames["positions"]
        refuse_not_finite(_name(spec), {"energy": energy, "coordinates": positions, "velocities": end["velocities"]})
        integrated = time.perf_counter()
        _pad(began, spec.dynamics, len(positions))
        audience_stays = stack.pop_all()

    def finish() -> SegmentResult:
        turned = time.perf_counter()
        audience_stays.close()
        with _failure_named(spec):
            pcoord, start_points = _observe(engine.indices, spec, start, frames)
        observed = time.perf_counter()
        trajectory = write_trajectory(spec, positions[:, engine.stored_indices], frames.get("box"))
        written = time.perf_counter()
        frames_ref, end_ref = ship({**frames, **start_points}, spec.store), ship(end, spec.store)
        shipped = time.perf_counter()
        archive = gather_when_due(spec.scratch, spec.run_dir) if spec.scratch and spec.run_dir else None
        return SegmentResult(
            segment_id=spec.segment_id,
            attempt=spec.attempt,
            n_frames=len(positions),
            n_atoms=positions.shape[1],
            simulated_ps=len(positions) * spec.dynamics.frame_steps * spec.dynamics.timestep_ps,
            potential_energy_kj_mol=energy,
            mean_temperature_K=temperature,
            frames=frames_ref,
            end=end_ref,
            trajectory=trajectory,
            seconds={
                "prepare": ready - began,
                "integrate": integrated - ready,
                "observe": observed - turned,
                "write": written - observed,
                "ship": shipped - written,
                "gather": time.perf_counter() - shipped,
            },
            archive=archive,
            pcoord=pcoord,
            watched=None if audience is None else audience.watched(),
        )

    return finish


def _audience(engine: Engine, spec: SegmentSpec, stack: ExitStack) -> Audience | None:
    """Return who looks at a segment, until the stack is closed."""
    if spec.watch is None:
        return None
    audience = Audience(spec, spec.watch, engine.stored_indices, engine.indices)
    stack.callback(audience.leave)
    return audience


def _integrate(engine: Engine, dynamics: Dynamics, audience: Audience | None) -> tuple[dict[str, np.ndarray], float]:
    """Return the frames, and the mean temperature in K over them.

    Frames are ``positions`` (n_frames, n_atoms, 3) float32 in nm, and ``box`` (n_frames, 3, 3) alike if there is one;
    fewer than were asked for where the audience ends the segment.
    """
    began = time.perf_counter()
    positions = np.empty((dynamics.n_frames, len(engine.masses), 3), dtype=np.float32)
    boxes = np.empty((dynamics.n_frames, 3, 3), dtype=np.float32)
    temperatures = 0.0
    for n_frames, (frame, box) in enumerate(zip(positions, boxes, strict=True), start=1):
        engine.integrator.step(dynamics.frame_steps)
        state = engine.context.getState(positions=True, velocities=True)
        frame[:] = positions_of(state)
        if engine.periodic:
            box[:] = box_of(state)
        temperatures += engine.temperature(velocities_of(state))
        if audience is not None:
            _pad(began, dynamics, n_frames)
            audience.see(positions[:n_frames], boxes[:n_frames] if engine.periodic else None)
            if audience.stopped:
                break
    positions, boxes = positions[:n_frames], boxes[:n_frames]
    frames = {"positions": positions, "box": boxes} if engine.periodic else {"positions": positions}
    return frames, temperatures / n_frames


def _pad(began: float, dynamics: Dynamics, n_frames: int) -> None:
    """Wait as long as a slower engine would have taken for so many frames."""
    wanted_s = dynamics.min_seconds * n_frames / dynamics.n_frames
    time.sleep(max(0.0, wanted_s - (time.perf_counter() - began)))


def _observe(
    indices: Indices, spec: SegmentSpec, start: Mapping[str, np.ndarray], frames: Mapping[str, np.ndarray]
) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return the progress coordinate of start and frames, packed; or the start as the model that it needs sees it."""
    coordinate = spec.coordinate
    if coordinate is None:
        return b"", {}
    row = slice(spec.start_row, spec.start_row + 1)
    # As frames are kept, so that a segment's first row equals the last one of its parent to the last bit.
    positions, box = start["positions"][row].astype(np.float32), None
    if indices.box is not None:
        box = (start["box"][row] if "box" in start else indices.box[None]).astype(np.float32)
    if coordinate.learned:
        return b"", {"start": indices.points(positions, box)}
    boxes = None if box is None else np.concatenate([box, frames["box"]])
    rows = values(coordinate, np.concatenate([positions, frames["positions"]]), boxes, indices)
    return pack_pcoord(rows), {}


@contextmanager
def _failure_named(spec: SegmentSpec) -> Iterator[None]:
    try:
        yield
    except CoordinateFailed as error:
        raise CoordinateFailed(f"{_name(spec)}: {error}") from error


def _end_state(engine: Engine) -> tuple[float, dict[str, np.ndarray]]:
    """Return potential energy (kJ/mol), and positions (nm), velocities (nm/ps) and any box (nm), float64."""
    state = engine.context.getState(positions=True, velocities=True, energy=True)
    end = {"positions": positions_of(state)[None], "velocities": velocities_of(state)[None]}
    return energy_of(state), {**end, "box": box_of(state)[None]} if engine.periodic else end


def _name(spec: SegmentSpec) -> str:
    return f"segment {spec.segment_id} from segment {spec.parent_id} frame {spec.parent_frame}"
