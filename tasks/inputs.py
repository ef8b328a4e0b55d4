"""Molecules from the files of Amber, GROMACS and OpenMM, with the force field that they bring along."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from tasks import reading
from tasks.errors import BadInput
from tasks.messages import Solvent

# Heavy hydrogens slow the fastest angle vibrations, so that 4 fs are stable.
HYDROGEN_MASS_AMU = 3.0
CUTOFF_NM = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Molecule:
    """A system with its force field, before it is minimised.

    Attributes
    ----------
    system
        OpenMM's System; its default box is the box of the positions.
    topology
        OpenMM's Topology.
    positions : ndarray of shape (n_atoms, 3), float64
        In nm.
    """

    system: Any
    topology: Any
    positions: np.ndarray

    @property
    def box(self) -> np.ndarray | None:
        """Box vectors (3, 3) in nm, float64; None where the system is not periodic."""
        if not self.system.usesPeriodicBoundaryConditions():
            return None
        return np.array(
            [vector.value_in_unit(unit.nanometer) for vector in self.system.getDefaultPeriodicBoxVectors()]
        )


def read_amber(prmtop: Path, coordinates: Path, solvent: Solvent | None) -> Molecule:
    """Return the molecule of an Amber topology and its coordinates (inpcrd, rst7).

    Parameters
    ----------
    solvent
        None for what the files say: explicit where they have a box, else implicit (OBC2, with the file's radii).

    Raises
    ------
    BadInput
        When a file cannot be read, the two do not match, or the solvent is not the one they hold.
    """
    with said_of(f"Amber topology {prmtop}", "give a prmtop that tleap or ParmEd wrote"):
        parameters = app.AmberPrmtopFile(str(prmtop))
    with said_of(f"Amber coordinates {coordinates}", "give an inpcrd or rst7 file"):
        state = app.AmberInpcrdFile(str(coordinates))
        positions = _in_nm(state.getPositions(asNumpy=True))
    _check_count(prmtop, parameters.topology, coordinates, positions)
    box = state.boxVectors or parameters.topology.getPeriodicBoxVectors()
    kind = _solvent(f"Amber files {prmtop} and {coordinates}", box is not None, solvent, "implicit")
    parameters.topology.setPeriodicBoxVectors(box if kind == "explicit" else None)
    with said_of(f"Amber topology {prmtop}", "look for terms that OpenMM does not know, or a box below 1.8 nm"):
        system = parameters.createSystem(
            **_force_options(kind), implicitSolvent=app.OBC2 if kind == "implicit" else None
        )
    return Molecule(system, parameters.topology, positions)


def read_gromacs(top: Path, gro: Path, solvent: Solvent | None) -> Molecule:
    """Return the molecule of a GROMACS topology and its coordinates.

    Parameters
    ----------
    solvent
        None for what the files say: explicit where they have a box, else vacuum.

    Raises
    ------
    BadInput
        When a file cannot be read, an include file is not found, the two do not match, or the solvent is not the one
        they hold.
    """
    with said_of(f"GROMACS coordinates {gro}", "give a .gro file"):
        state = app.GromacsGroFile(str(gro))
        positions = _in_nm(state.getPositions(asNumpy=True))
        box = _box_or_none(state.getPeriodicBoxVectors())
    try:
        with said_of(f"GROMACS topology {top}", "give a .top file with all that it includes"):
            parameters = app.GromacsTopFile(str(top), periodicBoxVectors=box)
    except BadInput as error:
        cause = str(error.__cause__)
        if "#include" not in cause:
            raise
        missing = cause.rpartition(":")[2].strip()
        raise BadInput(
            f"GROMACS topology {top} includes {missing}, which is neither beside it nor in GROMACS' own directory: "
            "set GMXDATA to the directory share/gromacs of an installation, or copy the file beside the topology"
        ) from error
    _check_count(top, parameters.topology, gro, positions)
    kind = _solvent(f"GROMACS files {top} and {gro}", box is not None, solvent, "vacuum")
    if kind == "implicit":
        raise BadInput(
            f"GROMACS topology {top} holds no radii for --solvent implicit: give --solvent vacuum, or Amber files"
        )
    with said_of(f"GROMACS topology {top}", "look for terms that OpenMM does not know, or a box below 1.8 nm"):
        system = parameters.createSystem(**_force_options(kind))
    return Molecule(system, parameters.topology, positions)


def read_openmm(xml: Path, pdb: Path) -> Molecule:
    """Return a System that OpenMM serialised, as it is, with the atoms of a PDB file.

    Raises
    ------
    BadInput
        When a file cannot be read, or the two do not match.
    """
    with said_of(f"OpenMM system {xml}", "give a System that openmm.XmlSerializer wrote"):
        system = openmm.XmlSerializer.deserialize(xml.read_text(encoding="utf-8"))
    if not isinstance(system, openmm.System):
        raise BadInput(f"OpenMM system {xml} holds a {type(system).__name__}: serialise the System itself")
    with said_of(f"PDB file {pdb}", "give the PDB file that the System was made for"):
        state = app.PDBFile(str(pdb))
        positions = _in_nm(state.getPositions(asNumpy=True))
    if system.getNumParticles() != len(positions):
        raise BadInput(
            f"OpenMM system {xml} has {system.getNumParticles()} particles and PDB file {pdb} "
            f"{len(positions)} atoms: give the PDB file that the System was made for"
        )
    return Molecule(system, state.topology, positions)


def said_of(file: str, remedy: str) -> AbstractContextManager[None]:
    """Turn what one of OpenMM's readers raises into a sentence on its file."""
    return reading.said_of(file, remedy, (*reading.STUMBLES, openmm.OpenMMException))


def _check_count(topology_file: Path, topology: Any, coordinate_file: Path, positions: np.ndarray) -> None:
    if topology.getNumAtoms() != len(positions):
        raise BadInput(
            f"{topology_file} has {topology.getNumAtoms()} atoms and {coordinate_file} {len(positions)}: "
            "give files of the same molecule"
        )
    if not np.isfinite(positions).all():
        raise BadInput(f"{coordinate_file} holds coordinates that are no numbers: write it again")


def _solvent(files: str, periodic: bool, asked: Solvent | None, without_box: Solvent) -> Solvent:
    """Return the solvent of files, or refuse the one that was asked for."""
    if asked is None:
        return "explicit" if periodic else without_box
    if asked == "explicit" and not periodic:
        raise BadInput(
            f"{files} have no box for --solvent explicit: solvate them with their own tools, or drop the flag"
        )
    if asked != "explicit" and periodic:
        raise BadInput(
            f"{files} have a box, so --solvent {asked} is not theirs: drop the flag, or strip water and box"
        )
    return asked


def _force_options(kind: Solvent) -> dict[str, Any]:
    """Return how forces are computed, for the ``createSystem`` of Amber and GROMACS files."""
    return {
        "nonbondedMethod": app.PME if kind == "explicit" else app.NoCutoff,
        "nonbondedCutoff": CUTOFF_NM * unit.nanometer,
        "constraints": app.HBonds,
        "hydrogenMass": HYDROGEN_MASS_AMU * unit.amu,
    }


def _in_nm(positions: Any) -> np.ndarray:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)


def _box_or_none(vectors: Any) -> Any:
    """Return box vectors, or None for the zeros with which GROMACS says that there is none."""
    if vectors is None or not vectors[0][0].value_in_unit(unit.nanometer) > 0:
        return None
    return vectors
