"""A particle in a double well: the smallest system with a rare event, whose rate brute force finds as well."""

from __future__ import annotations

import numpy as np
import openmm
from openmm import app

from tasks.inputs import Molecule

MASS_AMU = 40.0
# Where the minima are, at x = -a and x = a, y = z = 0.
MINIMUM_NM = 0.3
BARRIER_KT = 8.0
# kT at 300 K, whatever the thermostat: a potential does not change with it.
KT_KJ_PER_MOL = 0.00831446261815324 * 300.0
STIFFNESS_KJ_PER_MOL_NM2 = 100.0


def double_well() -> Molecule:
    """Return the particle at the left minimum, in V = 8 kT ((x/a)^2 - 1)^2 + 100 kJ/mol/nm^2 (y^2 + z^2).

    It has no bonds, no solvent and nothing that takes its momentum away but the thermostat.
    """
    force = openmm.CustomExternalForce("barrier * ((x/a)^2 - 1)^2 + stiffness * (y^2 + z^2)")
    force.addGlobalParameter("barrier", BARRIER_KT * KT_KJ_PER_MOL)
    force.addGlobalParameter("a", MINIMUM_NM)
    force.addGlobalParameter("stiffness", STIFFNESS_KJ_PER_MOL_NM2)
    force.addParticle(0, [])
    system = openmm.System()
    system.addParticle(MASS_AMU)
    system.addForce(force)
    topology = app.Topology()
    # An element, for files have a place for one: argon's mass is nearest.
    topology.addAtom("AR", app.element.argon, topology.addResidue("AR", topology.addChain("A")))
    return Molecule(system, topology, np.array([[-MINIMUM_NM, 0.0, 0.0]]))
