"""Run one segment of dynamics with OpenMM on a warm worker.

A worker keeps the Context of each system it has seen; a segment sets positions, velocities and random seeds anew, so
that an equal `SegmentSpec` gives equal dynamics, bit for bit on the Reference platform.
"""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit

from tasks.errors import NotFinite
from tasks.files import write_atomically
from tasks.messages import Dynamics, FileRecord, SegmentResult, SegmentSpec
from tasks.systems import PreparedSystem, make_context
from tasks.transport import fetch, ship

GAS_CONSTANT_KJ_PER_MOL_K = 0.00831446261815324
MAX_ENGINES = 2

_BAROSTATS = (
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloFlexibleBarostat,
    openmm.MonteCarloMembraneBarostat,
)


@dataclass(slots=True)
class Engine:
    """A Context kept between segments, and what is derived from its system once.

    Attributes
    ----------
    masses : ndarray of shape (n_atoms, 1), float64
        In dalton.
    n_freedom
        Degrees of freedom that hold kinetic energy.
    barostat
        The force that scales the box, if there is one.
    """

    context: Any
    integrator: Any
    stored_indices: np.ndarray
    masses: np.ndarray
    n_freedom: int
    periodic: bool
    barostat: Any


_engines: OrderedDict[tuple[str, Dynamics], Engine] = OrderedDict()


def run_segment(spec: SegmentSpec) -> SegmentResult:
    """Return one segment's energies, temperature and the addresses of its frames and end state.

    Raises
    ------
    NotFinite
        When a coordinate, velocity or the energy is NaN or infinite (the Reference platform does not say so itself).
    """
    began = time.perf_counter()
    engine = _engine(spec)
    with _nan_named(spec):
        _set_start(engine, spec)
        ready = time.perf_counter()
        frames, temperature = _integrate(engine, spec)
        energy, end = _end_state(engine)
    positions = frames["positions"]
    _refuse_not_finite(spec, energy, positions, end["velocities"])
    integrated = time.perf_counter()
    trajectory = _write_trajectory(spec, positions[:, engine.stored_indices], frames.get("box"))
    written = time.perf_counter()
    frames_ref = ship(frames, spec.store)
    end_ref = ship(end, spec.store)
    shipped = time.perf_counter()
    time.sleep(max(0.0, spec.dynamics.min_seconds - (shipped - began)))
    return SegmentResult(
        segment_id=spec.segment_id,
        attempt=spec.attempt,
        n_frames=len(positions),
        n_atoms=positions.shape[1],
        simulated_ps=spec.dynamics.segment_ps,
        potential_energy_kj_mol=energy,
        mean_temperature_K=temperature,
        frames=frames_ref,
        end=end_ref,
        trajectory=trajectory,
        seconds={
            "prepare": ready - began,
            "integrate": integrated - ready,
            "write": written - integrated,
            "ship": shipped - written,
        },
    )


def _engine(spec: SegmentSpec) -> Engine:
    key = (spec.system_id, spec.dynamics)
    if key not in _engines:
        prepared = PreparedSystem.from_arrays(fetch(spec.system))
        _engines[key] = _make_engine(prepared, spec.dynamics)
        while len(_engines) > MAX_ENGINES:
            _engines.popitem(last=False)
    _engines.move_to_end(key)
    return _engines[key]


def _make_engine(prepared: PreparedSystem, dynamics: Dynamics) -> Engine:
    context = make_context(prepared, dynamics)
    system = context.getSystem()
    masses = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])
    removes_drift = any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
    n_freedom = 3 * int((masses > 0).sum()) - system.getNumConstraints() - 3 * removes_drift
    barostat = next((force for force in system.getForces() if isinstance(force, _BAROSTATS)), None)
    return Engine(
        context,
        context.getIntegrator(),
        prepared.stored_indices,
        masses[:, None],
        n_freedom,
        prepared.box is not None,
        barostat,
    )


def _set_start(engine: Engine, spec: SegmentSpec) -> None:
    """Seed thermostat and barostat, and set box, positions and velocities.

    A seed takes effect only when a Context is made anew; that sets the system's own box, too.
    """
    start = fetch(spec.start)
    engine.integrator.setRandomNumberSeed(spec.seed)
    if engine.barostat is not None:
        engine.barostat.setRandomNumberSeed(spec.seed)
    engine.context.reinitialize()
    if "box" in start:
        engine.context.setPeriodicBoxVectors(*start["box"][spec.start_row].astype(np.float64))
    engine.context.setPositions(start["positions"][spec.start_row].astype(np.float64))
    if "velocities" in start:
        engine.context.setVelocities(start["velocities"][spec.start_row].astype(np.float64))
    else:
        # Frames are kept in single precision: put constrained bonds back to their length before velocities are drawn.
        engine.context.applyConstraints(engine.integrator.getConstraintTolerance())
        _draw_velocities(engine, spec.dynamics, np.random.default_rng(spec.seed))


def _draw_velocities(engine: Engine, dynamics: Dynamics, rng: np.random.Generator) -> None:
    """Draw velocities as the integrator keeps them, half a step behind the positions, at the temperature.

    OpenMM's ``setVelocitiesToTemperature`` does not serve. It draws from the thermostat's generator: with one seed
    for both, the first noise repeats the velocities and heats. And it takes the velocities of full steps for
    Maxwellian, but in a mode of frequency w their variance is less by a part of (w dt)^2 / 4 (Leimkuhler and Matthews
    2013, doi:10.1063/1.4802990); steps of 4 fs would begin 10 % too hot and cool for picoseconds. Here the velocities
    u of the full step shrink by the curvature along u: v = u - dt/2 (3 f(x - u dt/2) + f(x + u dt/2)) / 4m.
    """
    context, half_step = engine.context, 0.5 * dynamics.timestep_ps
    positions = _positions(context.getState(positions=True))
    inverse_masses = np.divide(1.0, engine.masses, out=np.zeros_like(engine.masses), where=engine.masses > 0)
    spread = np.sqrt(GAS_CONSTANT_KJ_PER_MOL_K * dynamics.temperature_K * inverse_masses)
    tolerance = engine.integrator.getConstraintTolerance()
    context.setVelocities(spread * rng.standard_normal(positions.shape))
    context.applyVelocityConstraints(tolerance)
    full_step = _velocities(context.getState(velocities=True))
    forces = 0.75 * _forces_at(context, positions - half_step * full_step)
    forces += 0.25 * _forces_at(context, positions + half_step * full_step)
    context.setPositions(positions)
    context.setVelocities(full_step - half_step * forces * inverse_masses)
    context.applyVelocityConstraints(tolerance)


def _integrate(engine: Engine, spec: SegmentSpec) -> tuple[dict[str, np.ndarray], float]:
    """Return the frames, and the mean temperature in K over them.

    Frames are ``positions`` (n_frames, n_atoms, 3) float32 in nm, and ``box`` (n_frames, 3, 3) alike if there is one.
    """
    dynamics = spec.dynamics
    positions = np.empty((dynamics.n_frames, len(engine.masses), 3), dtype=np.float32)
    boxes = np.empty((dynamics.n_frames, 3, 3), dtype=np.float32)
    kinetic = 0.0
    for frame, box in zip(positions, boxes, strict=True):
        engine.integrator.step(dynamics.frame_steps)
        state = engine.context.getState(positions=True, velocities=True)
        frame[:], box[:] = _positions(state), _box(state)
        kinetic += 0.5 * float((engine.masses * _velocities(state) ** 2).sum())
    frames = {"positions": positions, "box": boxes} if engine.periodic else {"positions": positions}
    return frames, 2.0 * kinetic / dynamics.n_frames / (engine.n_freedom * GAS_CONSTANT_KJ_PER_MOL_K)


def _end_state(engine: Engine) -> tuple[float, dict[str, np.ndarray]]:
    """Return potential energy (kJ/mol), and positions (nm), velocities (nm/ps) and any box (nm), float64."""
    state = engine.context.getState(positions=True, velocities=True, energy=True)
    energy = float(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
    end = {"positions": _positions(state)[None], "velocities": _velocities(state)[None]}
    return energy, {**end, "box": _box(state)[None]} if engine.periodic else end


def _positions(state: Any) -> np.ndarray:
    return np.asarray(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))


def _box(state: Any) -> np.ndarray:
    return np.asarray(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer))


def _velocities(state: Any) -> np.ndarray:
    return np.asarray(state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond))


def _forces_at(context: Any, positions: np.ndarray) -> np.ndarray:
    context.setPositions(positions)
    # Sites without mass have no velocity of their own to have moved by.
    context.computeVirtualSites()
    state = context.getState(forces=True)
    return np.asarray(state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer))


@contextmanager
def _nan_named(spec: SegmentSpec) -> Iterator[None]:
    """Turn OpenMM's own complaint of NaN, which some platforms make at any call, into ours."""
    try:
        yield
    except openmm.OpenMMException as error:
        if "NaN" in str(error):
            raise _not_finite(spec, str(error).partition(".")[0]) from error
        raise


def _refuse_not_finite(spec: SegmentSpec, energy: float, frames: np.ndarray, velocities: np.ndarray) -> None:
    values: dict[str, np.ndarray | float] = {"energy": energy, "coordinates": frames, "velocities": velocities}
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise _not_finite(spec, f"{name} became NaN or infinite")


def _not_finite(spec: SegmentSpec, what: str) -> NotFinite:
    return NotFinite(
        f"segment {spec.segment_id} from segment {spec.parent_id} frame {spec.parent_frame}: {what}; "
        "a shorter --timestep-fs or a sounder start may help"
    )


def _write_trajectory(spec: SegmentSpec, frames: np.ndarray, boxes: np.ndarray | None) -> FileRecord | None:
    """Write stored frames beside the node, then move them into the run directory in one step."""
    if spec.run_dir is None:
        return None
    import MDAnalysis as mda
    from MDAnalysis.lib.mdamath import triclinic_box

    suffix = spec.trajectory_format
    with tempfile.TemporaryDirectory(prefix="wayfinder-") as scratch:
        path = Path(scratch) / f"segment.{suffix}"
        universe = mda.Universe.empty(frames.shape[1], trajectory=True)
        # DCD keeps no times, but the number of its first frame: 1, since the start frame is left out.
        with mda.Writer(str(path), n_atoms=frames.shape[1], dt=spec.dynamics.frame_ps, istart=1) as writer:
            for number, frame in enumerate(frames, start=1):
                universe.atoms.positions = frame * 10.0  # MDAnalysis speaks Angstrom
                if boxes is not None:
                    universe.dimensions = triclinic_box(*boxes[number - 1] * 10.0)
                universe.trajectory.ts.frame = number
                universe.trajectory.ts.time = number * spec.dynamics.frame_ps
                writer.write(universe.atoms)
        data = path.read_bytes()
    # Not synced: a segment whose file a power cut tore is told by its checksum, and run again.
    name = f"trajectories/{spec.segment_id:08d}.{suffix}"
    return write_atomically(Path(spec.run_dir), name, data, durable=False)
