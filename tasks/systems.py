"""Molecular systems, prepared once and shipped: ff14SB in implicit solvent, ready for steps of 4 fs.

Building a system takes seconds and many libraries; a `PreparedSystem` is plain data that any worker turns
into a Context within milliseconds.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from tasks.errors import BadInput, TaskFailed
from tasks.messages import Dynamics
from tasks.pdb import listed, read_pdb
from tasks.peptides import check_sequence, peptide_pdb
from tasks.platforms import host_platform, new_context, resolve_platform

logger = logging.getLogger(__name__)

FORCE_FIELD = "amber14/protein.ff14SB.xml"
# Heavy hydrogens slow the fastest angle vibrations, so that 4 fs are stable.
HYDROGEN_MASS_AMU = 3.0
PH = 7.0

# The minimiser only has to remove clashes: the dynamics relaxes the rest at its own temperature.
MINIMISER_STEPS = 200
# From this many residues on a model that sees every heavy atom costs more than it learns.
CA_ONLY_RESIDUES = 40

# mbondi2 radii and the OBC2 screening factors, as in Amber's igb=5 (Onufriev, Bashford, Case 2004,
# doi:10.1002/prot.20033), for every element that an amino acid holds.
_RADIUS_NM = {"H": 0.12, "C": 0.17, "N": 0.155, "O": 0.15, "S": 0.18}
_RADIUS_OF_H_ON_N_NM = 0.13
_SCREENING = {"H": 0.85, "C": 0.72, "N": 0.79, "O": 0.85, "S": 0.96}


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """A molecular system to prepare, from a sequence or from a PDB file.

    Attributes
    ----------
    name
        Shown in summaries and messages.
    sequence
        One-letter codes; None where ``pdb`` is given.
    cap
        Put ACE and NME at the ends of the sequence.
    pdb
        Path of a PDB file; None where ``sequence`` is given.
    platform
        Name of an OpenMM platform, or ``auto``.
    seed
        Of where hydrogens are first put; 1 <= seed < 2**31.
    """

    name: str
    sequence: str | None = None
    cap: bool = False
    pdb: str | None = None
    temperature_K: float = 300.0
    platform: str = "auto"
    seed: int = 1


NAMED_SYSTEMS: Mapping[str, SystemSpec] = {
    "alanine-dipeptide": SystemSpec("alanine-dipeptide", sequence="A", cap=True),
    # CLN025 (Honda et al. 2008, doi:10.1021/ja8030533), the stabler chignolin.
    "chignolin": SystemSpec("chignolin", sequence="YYDPETGTWY"),
}


def named_system(name: str, *, temperature_K: float = 300.0, platform: str = "auto", seed: int = 1) -> SystemSpec:
    """Return the spec of a system that is known by name.

    Raises
    ------
    BadInput
        For other names; it lists the known ones.
    """
    if name not in NAMED_SYSTEMS:
        raise BadInput(
            f"no system is called {name!r}: choose one of {', '.join(NAMED_SYSTEMS)}, "
            "or give a sequence or a PDB file"
        )
    return replace(NAMED_SYSTEMS[name], temperature_K=temperature_K, platform=platform, seed=seed)


@dataclass(frozen=True, eq=False)
class PreparedSystem:
    """All that a worker needs to run a system, as plain data.

    Attributes
    ----------
    system_xml
        OpenMM's serialised System.
    topology_pdb
        PDB text of the minimised structure.
    positions : ndarray of shape (n_atoms, 3), float64
        Minimised, in nm.
    feature_indices : ndarray of shape (n_features,), int64
        Atoms that the model sees.
    stored_indices : ndarray of shape (n_stored,), int64
        Atoms that trajectories keep: everything but water.
    phi_indices, psi_indices : ndarray of shape (n, 4), int64
        Atoms of the backbone dihedrals of each residue that has both.
    platform
        Name of the OpenMM platform chosen.
    digest
        SHA-256 of all of the above, hexadecimal.
    """

    name: str
    system_xml: str
    topology_pdb: str
    positions: np.ndarray
    feature_indices: np.ndarray
    stored_indices: np.ndarray
    phi_indices: np.ndarray
    psi_indices: np.ndarray
    platform: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self._contents()))

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.positions)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the contents as named arrays that `tasks.transport` carries; text as uint8 (UTF-8)."""
        return {**self._contents(), "digest": _to_bytes(self.digest)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PreparedSystem:
        """Return the system that `to_arrays` packed.

        Raises
        ------
        TaskFailed
            When the arrays do not match the digest that travelled with them.
        """
        prepared = cls(
            name=_to_text(arrays["name"]),
            system_xml=_to_text(arrays["system_xml"]),
            topology_pdb=_to_text(arrays["topology_pdb"]),
            positions=arrays["positions"],
            feature_indices=arrays["feature_indices"],
            stored_indices=arrays["stored_indices"],
            phi_indices=arrays["phi_indices"],
            psi_indices=arrays["psi_indices"],
            platform=_to_text(arrays["platform"]),
        )
        sent = _to_text(arrays["digest"])
        if prepared.digest != sent:
            raise TaskFailed(
                f"prepared system {prepared.name!r} arrived with digest {prepared.digest[:12]} where "
                f"{sent[:12]} was sent: prepare it again with the version of tasks that runs here"
            )
        return prepared

    def _contents(self) -> dict[str, np.ndarray]:
        return {
            "name": _to_bytes(self.name),
            "system_xml": _to_bytes(self.system_xml),
            "topology_pdb": _to_bytes(self.topology_pdb),
            "positions": self.positions,
            "feature_indices": self.feature_indices,
            "stored_indices": self.stored_indices,
            "phi_indices": self.phi_indices,
            "psi_indices": self.psi_indices,
            "platform": _to_bytes(self.platform),
        }


def _to_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _to_text(array: np.ndarray) -> str:
    return array.tobytes().decode()


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def prepare(spec: SystemSpec) -> PreparedSystem:
    """Return a system ready to run; the same spec gives the same bytes in every process of a machine.

    Hydrogens are added at pH 7. Of a PDB file the first model and the first of alternate locations are used,
    missing heavy atoms are mended, selenomethionine becomes methionine, and water and ions are dropped, since
    the solvent is implicit; each of these is logged at INFO.

    Raises
    ------
    BadInput
        When the spec contradicts itself, the platform is not there, or the PDB file cannot be simulated.
    """
    _check(spec)
    source = _source(spec)
    modeller = _heavy_atoms(spec)
    with _seeded(spec.seed):
        modeller.addHydrogens(pH=PH, platform=openmm.Platform.getPlatformByName("Reference"))
    topology = modeller.topology
    force_field = app.ForceField(FORCE_FIELD)
    _check_templates(force_field, topology, source)
    # Before minimising, which takes the longest.
    platform = resolve_platform(spec.platform, topology.getNumAtoms())
    system = build_system(force_field, topology)
    positions = _minimise(system, modeller.positions, source)
    pdb = _pdb_text(topology, positions)
    features, stored = select_atoms(pdb)
    phi, psi = _backbone_dihedrals(topology)
    return PreparedSystem(
        name=spec.name,
        system_xml=openmm.XmlSerializer.serialize(system),
        topology_pdb=pdb,
        positions=positions,
        feature_indices=features,
        stored_indices=stored,
        phi_indices=phi,
        psi_indices=psi,
        platform=platform,
    )


def _check(spec: SystemSpec) -> None:
    if (spec.sequence is None) == (spec.pdb is None):
        raise BadInput(
            f"system {spec.name!r} has sequence {spec.sequence!r} and pdb {spec.pdb!r}: give one of the two"
        )
    if spec.pdb is not None and spec.cap:
        raise BadInput(f"cap is for sequences: put ACE and NME into {spec.pdb} or leave cap out")
    if spec.sequence is not None:
        check_sequence(spec.sequence)
        if len(spec.sequence) == 1 and not spec.cap:
            raise BadInput(
                f"sequence {spec.sequence!r} is a lone amino acid, which ff14SB knows only with caps: set cap"
            )
    if not (math.isfinite(spec.temperature_K) and spec.temperature_K > 0):
        raise BadInput(f"temperature {spec.temperature_K} K is not possible: give a positive number")
    if not 1 <= spec.seed < 2**31:
        raise BadInput(f"seed {spec.seed} is out of range: give an integer from 1 to {2**31 - 1}")


def _source(spec: SystemSpec) -> str:
    """Return how messages name where a structure comes from."""
    return f"PDB file {spec.pdb}" if spec.pdb is not None else f"sequence {spec.sequence!r}"


def _heavy_atoms(spec: SystemSpec) -> Any:
    """Return a Modeller of the structure before hydrogens are added."""
    if spec.pdb is not None:
        fixer = read_pdb(Path(spec.pdb), seed=spec.seed)
        return app.Modeller(fixer.topology, fixer.positions)
    pdb = app.PDBFile(io.StringIO(peptide_pdb(spec.sequence or "", cap=spec.cap)))
    return app.Modeller(pdb.topology, pdb.positions)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's generator, which `Modeller.addHydrogens` draws from, and put its state back after."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _check_templates(force_field: Any, topology: Any, source: str) -> None:
    unmatched = force_field.getUnmatchedResidues(topology)
    if unmatched:
        raise BadInput(
            f"{source} holds {listed(unmatched)}, whose atoms match no residue of ff14SB: correct their names, "
            "take the hydrogens out so that they are added anew, or cap a chain of a single residue"
        )


def build_system(force_field: Any, topology: Any) -> Any:
    """Return an OpenMM System without cutoff: bonds to hydrogen constrained, heavy hydrogens, implicit solvent."""
    system = force_field.createSystem(
        topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        hydrogenMass=HYDROGEN_MASS_AMU * unit.amu,
        removeCMMotion=True,
    )
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
        solvent.addParticle(charge, _RADIUS_OF_H_ON_N_NM if polar else _RADIUS_NM[symbol], _SCREENING[symbol])
    return solvent


def _minimise(system: Any, positions: Any, source: str) -> np.ndarray:
    """Return relaxed positions (n_atoms, 3) in nm, the same on every call.

    GPUs and several CPU threads add forces in an order that changes; Reference and one thread do not.
    """
    platform = host_platform(system.getNumParticles())
    context = new_context(system, openmm.VerletIntegrator(0.001), platform)
    try:
        context.setPositions(positions)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=MINIMISER_STEPS)
        state = context.getState(positions=True, energy=True)
    except openmm.OpenMMException as error:
        raise BadInput(f"{source} cannot be minimised ({error}): look for atoms that overlap") from error
    relaxed = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=np.float64)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    # The Reference platform does not raise on NaN.
    if not (math.isfinite(energy) and np.isfinite(relaxed).all()):
        raise BadInput(f"{source} has energy {energy} kJ/mol once minimised: look for atoms that overlap")
    return relaxed


def _pdb_text(topology: Any, positions: np.ndarray) -> str:
    """Return PDB text without OpenMM's header, which holds the date and so would change the digest."""
    text = io.StringIO()
    app.PDBFile.writeModel(topology, positions * unit.nanometer, text, keepIds=True)
    app.PDBFile.writeFooter(topology, text)
    return text.getvalue()


def select_atoms(topology_pdb: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the atoms that the model sees and those that trajectories keep, as int64 indices.

    The model sees heavy atoms, or the alpha carbons of solutes of 40 residues or more.
    """
    import MDAnalysis

    with warnings.catch_warnings():
        # It warns of columns that we leave empty (masses, charges, a box).
        warnings.simplefilter("ignore", UserWarning)
        universe = MDAnalysis.Universe(io.StringIO(topology_pdb), format="PDB", topology_format="PDB")
    solute = universe.select_atoms("not water")
    large = len(solute.residues) >= CA_ONLY_RESIDUES
    features = solute.select_atoms("protein and name CA" if large else "not element H")
    return features.indices.astype(np.int64), solute.indices.astype(np.int64)


def _backbone_dihedrals(topology: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return atom indices of phi and psi, (n, 4) each, of the residues that have both."""
    phi, psi = [], []
    for chain in topology.chains():
        named = [{atom.name: atom.index for atom in residue.atoms()} for residue in chain.residues()]
        for before, here, after in zip(named, named[1:], named[2:], strict=False):
            if "C" in before and {"N", "CA", "C"} <= here.keys() and "N" in after:
                phi.append([before["C"], here["N"], here["CA"], here["C"]])
                psi.append([here["N"], here["CA"], here["C"], after["N"]])
    return np.array(phi, dtype=np.int64).reshape(-1, 4), np.array(psi, dtype=np.int64).reshape(-1, 4)


def integrator(dynamics: Dynamics) -> Any:
    """Return the Langevin integrator of a campaign, unseeded.

    A seed acts when a Context is made: on a warm one, set it and call ``context.reinitialize()``, or the seed
    is ignored in silence.
    """
    return openmm.LangevinMiddleIntegrator(dynamics.temperature_K, dynamics.friction_per_ps, dynamics.timestep_ps)


def make_context(prepared: PreparedSystem, dynamics: Dynamics) -> Any:
    """Return an OpenMM Context of a prepared system at its minimised positions, without velocities.

    Raises
    ------
    BadInput
        When the platform that ``dynamics`` names is not there.
    """
    system = openmm.XmlSerializer.deserialize(prepared.system_xml)
    platform = resolve_platform(dynamics.platform, prepared.n_atoms)
    context = new_context(system, integrator(dynamics), platform)
    context.setPositions(prepared.positions)
    return context
