"""A system's OpenMM Context, kept warm between tasks, and what every dynamics does with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openmm

from tasks.errors import NotFinite
from tasks.indices import Indices
from tasks.messages import Dynamics, Ref
from tasks.platforms import new_context, resolve_platform
from tasks.prepared import PreparedSystem
from tasks.transport import fetch

GAS_CONSTANT_KJ_PER_MOL_K = 0.00831446261815324
# Campaigns that share their workers take turns on them.
MAX_ENGINES = 6

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
    indices
        What is looked at of the system.
    """

    context: Any
    integrator: Any
    stored_indices: np.ndarray
    masses: np.ndarray
    n_freedom: int
    periodic: bool
    barostat: Any
    indices: Indices

    def begin(self, start: Mapping[str, np.ndarray], row: int, dynamics: Dynamics, seed: int) -> None:
        """Seed thermostat and barostat, and set box, positions and velocities.

        Parameters
        ----------
        start, row
            As in `tasks.messages.SegmentSpec`; velocities that are not there are drawn.
        """
        self.integrator.setRandomNumberSeed(seed)
        if self.barostat is not None:
            self.barostat.setRandomNumberSeed(seed)
        # A seed takes effect only when a Context is made anew; that sets the system's own box, too.
        self.context.reinitialize()
        if "box" in start:
            self.context.setPeriodicBoxVectors(*start["box"][row].astype(np.float64))
        self.context.setPositions(start["positions"][row].astype(np.float64))
        if "velocities" in start:
            self.context.setVelocities(start["velocities"][row].astype(np.float64))
        else:
            # Frames are kept in single precision: put constrained bonds back to their length before drawing.
            self.context.applyConstraints(self.integrator.getConstraintTolerance())
            draw_velocities(self, dynamics, np.random.default_rng(seed))

    def temperature(self, velocities: np.ndarray) -> float:
        """Return the temperature in K that velocities (n_atoms, 3) in nm/ps stand for."""
        return float((self.masses * velocities**2).sum()) / (self.n_freedom * GAS_CONSTANT_KJ_PER_MOL_K)


_engines: OrderedDict[tuple[str, Dynamics], Engine] = OrderedDict()


def warm_engine(system: Ref, system_id: str, dynamics: Dynamics) -> Engine:
    """Return the engine of a shipped system, made if this worker does not have it yet."""
    # How long a segment is makes no difference to its Context.
    key = (system_id, replace(dynamics, n_steps=0, frame_steps=0, min_seconds=0.0))
    if key not in _engines:
        prepared = PreparedSystem.from_arrays(fetch(system))
        _engines[key] = make_engine(prepared, make_context(prepared, dynamics))
        while len(_engines) > MAX_ENGINES:
            _engines.popitem(last=False)
    _engines.move_to_end(key)
    return _engines[key]


def integrator(dynamics: Dynamics) -> Any:
    """Return the Langevin integrator of a campaign, unseeded.

    A seed acts when a Context is made: on a warm one, set it and call ``context.reinitialize()``, or the seed
    is ignored in silence.
    """
    return openmm.LangevinMiddleIntegrator(dynamics.temperature_K, dynamics.friction_per_ps, dynamics.timestep_ps)


def make_context(prepared: PreparedSystem, dynamics: Dynamics, *forces: Any) -> Any:
    """Return an OpenMM Context of a prepared system at its positions, without velocities.

    Parameters
    ----------
    forces
        To be added to those of the system.

    Raises
    ------
    BadInput
        When the platform that ``dynamics`` names is not there.
    """
    system = openmm.XmlSerializer.deserialize(prepared.system_xml)
    for force in forces:
        system.addForce(force)
    platform = resolve_platform(dynamics.platform, prepared.n_atoms)
    context = new_context(system, integrator(dynamics), platform, dynamics.precision)
    context.setPositions(prepared.positions)
    return context


def make_engine(prepared: PreparedSystem, context: Any) -> Engine:
    """Return the engine of a Context of a prepared system."""
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
        Indices.from_arrays(prepared.to_arrays()),
    )


def draw_velocities(engine: Engine, dynamics: Dynamics, rng: np.random.Generator) -> None:
    """Draw velocities as the integrator keeps them, half a step behind the positions, at the temperature.

    OpenMM's ``setVelocitiesToTemperature`` does not serve. It draws from the thermostat's generator: with one seed
    for both, the first noise repeats the velocities and heats. And it takes the velocities of full steps for
    Maxwellian, but in a mode of frequency w their variance is less by a part of (w dt)^2 / 4 (Leimkuhler and Matthews
    2013, doi:10.1063/1.4802990); steps of 4 fs would begin 10 % too hot and cool for picoseconds. Here the velocities
    u of the full step shrink by the curvature along u: v = u - dt/2 (3 f(x - u dt/2) + f(x + u dt/2)) / 4m.
    """
    context, half_step = engine.context, 0.5 * dynamics.timestep_ps
    positions = positions_of(context.getState(positions=True))
    inverse_masses = np.divide(1.0, engine.masses, out=np.zeros_like(engine.masses), where=engine.masses > 0)
    spread = np.sqrt(GAS_CONSTANT_KJ_PER_MOL_K * dynamics.temperature_K * inverse_masses)
    tolerance = engine.integrator.getConstraintTolerance()
    context.setVelocities(spread * rng.standard_normal(positions.shape))
    context.applyVelocityConstraints(tolerance)
    full_step = velocities_of(context.getState(velocities=True))
    forces = 0.75 * _forces_at(context, positions - half_step * full_step)
    forces += 0.25 * _forces_at(context, positions + half_step * full_step)
    context.setPositions(positions)
    context.setVelocities(full_step - half_step * forces * inverse_masses)
    context.applyVelocityConstraints(tolerance)


# OpenMM gives these in its own units, nm, ps and kJ/mol; asking to convert them takes as long as three steps of a
# small molecule.


def positions_of(state: Any) -> np.ndarray:
    """Return a State's positions (n_atoms, 3) in nm, float64."""
    return np.asarray(state.getPositions(asNumpy=True)._value)


def box_of(state: Any) -> np.ndarray:
    """Return a State's box vectors (3, 3) in nm, float64."""
    return np.asarray(state.getPeriodicBoxVectors(asNumpy=True)._value)


def velocities_of(state: Any) -> np.ndarray:
    """Return a State's velocities (n_atoms, 3) in nm/ps, float64."""
    return np.asarray(state.getVelocities(asNumpy=True)._value)


def energy_of(state: Any) -> float:
    """Return a State's potential energy in kJ/mol."""
    return float(state.getPotentialEnergy()._value)


def _forces_at(context: Any, positions: np.ndarray) -> np.ndarray:
    context.setPositions(positions)
    # Sites without mass have no velocity of their own to have moved by.
    context.computeVirtualSites()
    return np.asarray(context.getState(forces=True).getForces(asNumpy=True)._value)


@contextmanager
def nan_named(where: str) -> Iterator[None]:
    """Turn OpenMM's own complaint of NaN, which some platforms make at any call, into ours."""
    try:
        yield
    except openmm.OpenMMException as error:
        if "NaN" in str(error):
            raise _not_finite(where, str(error).partition(".")[0]) from error
        raise


def refuse_not_finite(where: str, values: dict[str, np.ndarray | float]) -> None:
    """Raise `NotFinite` if any of the named values is NaN or infinite."""
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise _not_finite(where, f"{name} became NaN or infinite")


def _not_finite(where: str, what: str) -> NotFinite:
    return NotFinite(f"{where}: {what}; a shorter --timestep-fs or a sounder start may help")
