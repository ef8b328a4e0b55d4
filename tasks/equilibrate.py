"""Bring a basis state to the campaign's temperature and pressure, once, before walkers begin at it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import openmm

from tasks.engine import (
    Engine,
    box_of,
    energy_of,
    make_context,
    make_engine,
    nan_named,
    positions_of,
    refuse_not_finite,
    velocities_of,
)
from tasks.files import stage
from tasks.messages import EquilibrateResult, EquilibrateSpec, FileRecord
from tasks.prepared import PreparedSystem
from tasks.transport import fetch, ship

RESTRAINT_KJ_PER_MOL_NM2 = 1000.0
# Heat must come in quickly from the thermostat: a minimised structure has none, nor has water that was just added.
MIN_FRICTION_PER_PS = 10.0
# Of the last quarter; more would cost more than they tell.
N_SAMPLES = 50

_RESTRAINT = "restraint"
_GRAMS_PER_ML = 1.66053906660e-3  # one dalton / nm^3


def equilibrate(spec: EquilibrateSpec) -> EquilibrateResult:
    """Return the address of an equilibrated state, and what equilibration showed.

    A short form of what Roe and Brooks (2020, doi:10.1063/5.0013849) do: with the solute's heavy atoms restrained and
    more friction, a quarter at constant volume with half the time step, then half at constant pressure; the last
    quarter is free. Pressure is that of the system's barostat; without one the volume stays.

    Raises
    ------
    NotFinite
        When a coordinate, velocity or the energy becomes NaN or infinite.
    """
    began = time.perf_counter()
    name = f"equilibration of basis state {spec.number}"
    prepared = PreparedSystem.from_arrays(fetch(spec.system))
    start = fetch(spec.start)
    friction = max(spec.dynamics.friction_per_ps, MIN_FRICTION_PER_PS)
    gently = replace(spec.dynamics, timestep_ps=spec.dynamics.timestep_ps / 2, friction_per_ps=friction)
    restraint = _restraint(start["positions"][spec.start_row], prepared.restrained_indices, prepared.box is not None)
    with nan_named(name):
        engine = make_engine(prepared, make_context(prepared, gently, restraint))
        engine.begin(start, spec.start_row, gently, spec.seed)
        before = _density(engine, engine.context.getState())
        temperature, density = _relax(engine, spec)
        state = engine.context.getState(positions=True, velocities=True, energy=True)
    end = {"positions": positions_of(state)[None], "box": box_of(state)[None]}
    energy = energy_of(state)
    refuse_not_finite(name, {"energy": energy, "coordinates": end["positions"], "velocities": velocities_of(state)})
    integrated = time.perf_counter()
    return EquilibrateResult(
        task_id=spec.task_id,
        attempt=spec.attempt,
        state=ship(end if engine.periodic else {"positions": end["positions"]}, spec.store),
        state_file=_keep(spec, state),
        n_atoms=prepared.n_atoms,
        simulated_ps=4 * quarter_steps(spec.duration_ps, spec.dynamics.timestep_ps) * spec.dynamics.timestep_ps,
        potential_energy_kj_mol=energy,
        mean_temperature_K=temperature,
        density_before=before,
        mean_density=density,
        seconds={"integrate": integrated - began, "ship": time.perf_counter() - integrated},
    )


def quarter_steps(duration_ps: float, timestep_ps: float) -> int:
    """Return the steps in a quarter of an equilibration."""
    return round(duration_ps / 4 / timestep_ps)


def _restraint(positions: np.ndarray, indices: np.ndarray, periodic: bool) -> Any:
    """Return springs to where atoms are now; molecules may appear at another face of a periodic box."""
    squared = "periodicdistance(x, y, z, x0, y0, z0)^2" if periodic else "((x-x0)^2 + (y-y0)^2 + (z-z0)^2)"
    force = openmm.CustomExternalForce(f"0.5 * {_RESTRAINT} * {squared}")
    force.addGlobalParameter(_RESTRAINT, RESTRAINT_KJ_PER_MOL_NM2)
    for axis in ("x0", "y0", "z0"):
        force.addPerParticleParameter(axis)
    for index in indices.tolist():
        force.addParticle(index, positions[index].astype(np.float64))
    return force


def _relax(engine: Engine, spec: EquilibrateSpec) -> tuple[float, float | None]:
    """Run all four quarters; return mean temperature (K) and density (g/ml) of the last."""
    n_steps = quarter_steps(spec.duration_ps, spec.dynamics.timestep_ps)
    frequency = 0
    if engine.barostat is not None:
        frequency = engine.barostat.getFrequency()
        engine.barostat.setFrequency(0)
    engine.integrator.step(2 * n_steps)
    engine.integrator.setStepSize(spec.dynamics.timestep_ps)
    if engine.barostat is not None:
        engine.barostat.setFrequency(frequency)
    engine.integrator.step(2 * n_steps)
    engine.context.setParameter(_RESTRAINT, 0.0)
    engine.integrator.setFriction(spec.dynamics.friction_per_ps)
    return _sampled(engine, n_steps)


def _sampled(engine: Engine, n_steps: int) -> tuple[float, float | None]:
    """Run so many steps; return mean temperature (K) and density (g/ml)."""
    stops = np.linspace(0, n_steps, min(n_steps, N_SAMPLES) + 1).astype(int)
    temperatures, densities = [], []
    for n_more in np.diff(stops).tolist():
        engine.integrator.step(n_more)
        state = engine.context.getState(velocities=True)
        temperatures.append(engine.temperature(velocities_of(state)))
        densities.append(_density(engine, state))
    known = [density for density in densities if density is not None]
    return float(np.mean(temperatures)), float(np.mean(known)) if known else None


def _density(engine: Engine, state: Any) -> float | None:
    """Return g/ml; None where there is no box."""
    if not engine.periodic:
        return None
    return float(engine.masses.sum() / np.linalg.det(box_of(state))) * _GRAMS_PER_ML


def _keep(spec: EquilibrateSpec, state: Any) -> FileRecord | None:
    """Write the State into the run directory."""
    if spec.run_dir is None:
        return None
    text = openmm.XmlSerializer.serialize(state)
    return stage(spec.run_dir, f"equilibrated/{spec.number:04d}.xml", text.encode(), spec.attempt)
