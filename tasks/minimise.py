"""Relax a structure until no atoms clash."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openmm
from openmm import unit

from tasks.errors import BadInput
from tasks.platforms import host_platform, new_context

# The minimiser only has to remove clashes: the dynamics relaxes the rest at its own temperature.
MINIMISER_STEPS = 200


def minimise(
    system: Any, positions: Any, source: str, box: np.ndarray | None = None, *, max_steps: int = MINIMISER_STEPS
) -> np.ndarray:
    """Return relaxed positions (n_atoms, 3) in nm, the same on every call.

    GPUs and several CPU threads add forces in an order that changes; Reference and one thread do not.

    Parameters
    ----------
    source
        How messages name where the positions (n_atoms, 3) in nm come from.
    box
        Box vectors (3, 3) in nm, where they are not the system's own.
    max_steps
        0 leaves the positions as they are: they are only checked.

    Raises
    ------
    BadInput
        When the energy is not finite, or does not become so.
    """
    platform = host_platform(system.getNumParticles())
    try:
        context = new_context(system, openmm.VerletIntegrator(0.001), platform)
        if box is not None and system.usesPeriodicBoundaryConditions():
            context.setPeriodicBoxVectors(*box)
        context.setPositions(positions)
        if max_steps:
            openmm.LocalEnergyMinimizer.minimize(context, maxIterations=max_steps)
        state = context.getState(positions=True, energy=True)
    except openmm.OpenMMException as error:
        wanted = "minimised" if max_steps else "simulated"
        raise BadInput(f"{source} cannot be {wanted} ({error}): look for atoms that overlap") from error
    relaxed = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=np.float64)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    # The Reference platform does not raise on NaN.
    if not (math.isfinite(energy) and np.isfinite(relaxed).all()):
        when = "once minimised" if max_steps else "as it is"
        raise BadInput(f"{source} has energy {energy} kJ/mol {when}: look for atoms that overlap")
    return relaxed
