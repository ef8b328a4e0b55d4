"""Force fields from OpenMM's XML files, with implicit, explicit or no solvent."""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from tasks.errors import BadInput
from tasks.inputs import CUTOFF_NM, HYDROGEN_MASS_AMU
from tasks.messages import Solvent
from tasks.pdb import listed

FORCE_FIELD = "amber14/protein.ff14SB.xml"
# TIP3P-FB (Wang et al. 2014, doi:10.1021/jz500737m) with its ions.
WATER = "amber14/tip3pfb.xml"

# mbondi2 radii and the OBC2 screening factors, as in Amber's igb=5 (Onufriev, Bashford, Case 2004,
# doi:10.1002/prot.20033).
_RADIUS_NM = {"H": 0.12, "C": 0.17, "N": 0.155, "O": 0.15, "F": 0.15, "P": 0.185, "S": 0.18, "Cl": 0.17}
_RADIUS_OF_OTHERS_NM = 0.15
_RADIUS_OF_H_ON_N_NM = 0.13
_SCREENING = {"H": 0.85, "C": 0.72, "N": 0.79, "O": 0.85, "F": 0.88, "P": 0.86, "S": 0.96}
_SCREENING_OF_OTHERS = 0.8


def load_force_field(names: tuple[str, ...], solvent: Solvent) -> Any:
    """Return OpenMM's ForceField of these XML files; of ff14SB, with water where it is explicit, if there are none.

    Raises
    ------
    BadInput
        When there is no such file, or it is no force field.
    """
    if not names:
        names = (FORCE_FIELD, WATER) if solvent == "explicit" else (FORCE_FIELD,)
    try:
        return app.ForceField(*names)
    # A parser of XML raises errors of its own, which are SyntaxErrors; what is no force field makes OpenMM stumble.
    except (ValueError, OSError, SyntaxError, LookupError, AttributeError, TypeError) as error:
        raise BadInput(
            f"force field {', '.join(names)} cannot be used ({' '.join(str(error).split())[:200]}): "
            "give names of OpenMM's XML files, as amber14-all.xml"
        ) from error


def check_templates(force_field: Any, topology: Any, source: str, name: str) -> None:
    """Refuse a structure that holds what the force field does not know.

    Parameters
    ----------
    source, name
        How the message names the structure and the force field.

    Raises
    ------
    BadInput
        It lists the residues.
    """
    unmatched = force_field.getUnmatchedResidues(topology)
    if unmatched:
        raise BadInput(
            f"{source} holds {listed(unmatched)}, whose atoms match no residue of {name}: correct their names, "
            "take the hydrogens out so that they are added anew, or cap a chain of a single residue"
        )


def add_water(force_field: Any, modeller: Any, padding_nm: float, ionic_strength_M: float) -> None:
    """Put the molecule of a Modeller into a cube of water with ions that neutralise it.

    Draws from Python's generator.

    Parameters
    ----------
    padding_nm
        Water between the smallest sphere about the box of the molecule and each face.
    """
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    centre = (positions.min(axis=0) + positions.max(axis=0)) / 2
    # OpenMM's own padding lies between a molecule and its image, half of what others call by that name.
    width = 2 * (float(np.linalg.norm(positions - centre, axis=1).max()) + padding_nm)
    try:
        modeller.addSolvent(
            force_field,
            model=_water_model(force_field),
            boxSize=openmm.Vec3(width, width, width) * unit.nanometer,
            ionicStrength=ionic_strength_M * unit.molar,
        )
    except ValueError as error:
        raise BadInput(
            f"water cannot be added ({' '.join(str(error).split())[:200]}): "
            f"name a force field that knows water and ions too, as --forcefield {FORCE_FIELD},{WATER}"
        ) from error


def _water_model(force_field: Any) -> str:
    """Return the box of water that suits a force field: with three sites, or with four."""
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    oxygen = topology.addAtom("O", app.element.oxygen, residue)
    for name in ("H1", "H2"):
        topology.addBond(oxygen, topology.addAtom(name, app.element.hydrogen, residue))
    return "tip4pew" if force_field.getUnmatchedResidues(topology) else "tip3p"


def build_system(force_field: Any, topology: Any, solvent: Solvent = "implicit") -> Any:
    """Return an OpenMM System: bonds to hydrogen constrained, heavy hydrogens, and the solvent's forces.

    Explicit solvent has particle-mesh Ewald, the others no cutoff.
    """
    system = force_field.createSystem(
        topology,
        nonbondedMethod=app.PME if solvent == "explicit" else app.NoCutoff,
        nonbondedCutoff=CUTOFF_NM * unit.nanometer,
        constraints=app.HBonds,
        hydrogenMass=HYDROGEN_MASS_AMU * unit.amu,
        removeCMMotion=True,
    )
    brings_its_own = any(isinstance(f, openmm.GBSAOBCForce | openmm.CustomGBForce) for f in system.getForces())
    if solvent == "implicit" and not brings_its_own:
        system.addForce(solvent_force(system, topology))
    return system


def solvent_force(system: Any, topology: Any) -> Any:
    """Return generalised Born solvent (OBC2, with its surface term) for a System with charges.

    Equal to OpenMM's ``implicit/obc2.xml``, which makes a `CustomGBForce` of it that is 2 to 7 times slower.
    """
    (nonbonded,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    on_nitrogen = {
        hydrogen.index
        for bond in topology.bonds()
        for hydrogen, other in (bond, reversed(bond))
        if other.element is app.element.nitrogen
    }
    solvent = openmm.GBSAOBCForce()
    solvent.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
    solvent.setSoluteDielectric(1.0)
    solvent.setSolventDielectric(78.5)
    for atom in topology.atoms():
        symbol = atom.element.symbol
        polar = symbol == "H" and atom.index in on_nitrogen
        charge, _, _ = nonbonded.getParticleParameters(atom.index)
        radius = _RADIUS_OF_H_ON_N_NM if polar else _RADIUS_NM.get(symbol, _RADIUS_OF_OTHERS_NM)
        solvent.addParticle(charge, radius, _SCREENING.get(symbol, _SCREENING_OF_OTHERS))
    return solvent


def add_barostat(system: Any, pressure_bar: float, temperature_K: float) -> None:
    """Let the box of a periodic System breathe at a pressure; 0 keeps it as it is."""
    if pressure_bar > 0:
        system.addForce(openmm.MonteCarloBarostat(pressure_bar * unit.bar, temperature_K * unit.kelvin))
