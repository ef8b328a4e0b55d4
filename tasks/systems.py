"""Molecular systems, prepared once and shipped, ready for steps of 4 fs.

Building a system takes seconds and many libraries; a `PreparedSystem` is plain data that any worker turns
into a Context within milliseconds.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from tasks.errors import BadInput, TaskFailed
from tasks.inputs import Molecule, read_amber, read_gromacs, read_openmm, read_structure, structure_files
from tasks.messages import Dynamics, Solvent
from tasks.pdb import read_pdb
from tasks.peptides import check_sequence, peptide_pdb
from tasks.periodic import bond_tree, make_whole, nearest_tree
from tasks.platforms import host_platform, new_context, resolve_platform
from tasks.selection import backbone_dihedrals, select_atoms
from tasks.solvation import add_barostat, add_water, build_system, check_templates, load_force_field

logger = logging.getLogger(__name__)

PH = 7.0

# The minimiser only has to remove clashes: the dynamics relaxes the rest at its own temperature.
MINIMISER_STEPS = 200
# Hydrogens below this mass do not bear steps of 4 fs.
_HEAVY_HYDROGEN_AMU = 2.0

Files = tuple[str, str]

_SOURCES = ("sequence", "pdb", "amber", "gromacs", "openmm_system")


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """A molecular system to prepare, from one of ``sequence``, ``pdb``, ``amber``, ``gromacs``, ``openmm_system``.

    Attributes
    ----------
    name
        Shown in summaries and messages.
    sequence
        One-letter codes.
    cap
        Put ACE and NME at the ends of the sequence.
    pdb
        Path of a PDB file.
    amber, gromacs
        Paths of a topology and of coordinates.
    openmm_system
        Paths of a serialised System and of a PDB file.
    solvent
        None for what the files say, and implicit where there are none.
    padding_nm, ionic_strength_M
        Of the water that is added around a sequence or PDB file in explicit solvent.
    pressure_bar
        Of explicit solvent; 0 for a box of constant volume.
    force_field
        Names of OpenMM's XML files, for a sequence or PDB file; none for ff14SB.
    features, store
        MDAnalysis selections of what the model sees and of what trajectories keep; None for the defaults of
        `tasks.selection.select_atoms`.
    starts
        Paths of structures with the same atoms, to start from instead; folders stand for the files in them.
    platform
        Name of an OpenMM platform, or ``auto``.
    seed
        Of where hydrogens are first put; 1 <= seed < 2**31.
    """

    name: str
    sequence: str | None = None
    cap: bool = False
    pdb: str | None = None
    amber: Files | None = None
    gromacs: Files | None = None
    openmm_system: Files | None = None
    solvent: Solvent | None = None
    padding_nm: float = 1.0
    ionic_strength_M: float = 0.15
    pressure_bar: float = 1.0
    force_field: tuple[str, ...] = ()
    features: str | None = None
    store: str | None = None
    starts: tuple[str, ...] = ()
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
        PDB text of the atoms that trajectories keep, minimised.
    positions : ndarray of shape (n_atoms, 3), float64
        Minimised, in nm.
    feature_indices : ndarray of shape (n_features,), int64
        Atoms that the model sees.
    stored_indices : ndarray of shape (n_stored,), int64
        Atoms that trajectories keep: everything but water and its salt, unless the user chose.
    phi_indices, psi_indices : ndarray of shape (n, 4), int64
        Atoms of the backbone dihedrals of each residue that has both.
    platform
        Name of the OpenMM platform chosen.
    box : ndarray of shape (3, 3), float64
        Box vectors in nm; None where the system is not periodic.
    feature_tree : ndarray of shape (n_features - 1, 2), int64
        How the atoms that the model sees, counted from 0, hang together (`tasks.periodic.make_whole`); None where the
        system is not periodic.
    starts : ndarray of shape (n_starts, n_atoms, 3), float64
        Where walkers begin, in nm; None for ``positions`` alone.
    start_boxes : ndarray of shape (n_starts, 3, 3), float64
        Their boxes in nm; None where there are no starts or no box.
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
    box: np.ndarray | None = None
    feature_tree: np.ndarray | None = None
    starts: np.ndarray | None = None
    start_boxes: np.ndarray | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self._contents()))

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.positions)

    @property
    def n_starts(self) -> int:
        """Number of structures that walkers begin from."""
        return 1 if self.starts is None else len(self.starts)

    def basis(self) -> dict[str, np.ndarray]:
        """Return where walkers begin, as segments take it: ``positions`` (n_starts, n_atoms, 3) and any ``box``."""
        if self.starts is None:
            return {"positions": self.positions[None]}
        return {"positions": self.starts, **({} if self.start_boxes is None else {"box": self.start_boxes})}

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
            box=arrays.get("box"),
            feature_tree=arrays.get("feature_tree"),
            starts=arrays.get("starts"),
            start_boxes=arrays.get("start_boxes"),
        )
        sent = _to_text(arrays["digest"])
        if prepared.digest != sent:
            raise TaskFailed(
                f"prepared system {prepared.name!r} arrived with digest {prepared.digest[:12]} where "
                f"{sent[:12]} was sent: prepare it again with the version of tasks that runs here"
            )
        return prepared

    def _contents(self) -> dict[str, np.ndarray]:
        optional = {
            "box": self.box,
            "feature_tree": self.feature_tree,
            "starts": self.starts,
            "start_boxes": self.start_boxes,
        }
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
            **{name: array for name, array in optional.items() if array is not None},
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

    To a sequence or PDB file hydrogens are added at pH 7. Of a PDB file the first model and the first of alternate
    locations are used, missing heavy atoms are mended, selenomethionine becomes methionine, and water and ions are
    dropped, since solvent is implicit or added anew; each of these is logged at INFO.

    Raises
    ------
    BadInput
        When the spec contradicts itself, the platform is not there, or what it names cannot be simulated.
    """
    _check(spec)
    source = _source(spec)
    molecule = _molecule(spec, source)
    system, topology, box = molecule.system, molecule.topology, molecule.box
    # Before minimising, which takes the longest.
    platform = resolve_platform(spec.platform, topology.getNumAtoms())
    start = molecule.positions
    features, stored = select_atoms(_pdb_text(topology, start), spec.features, spec.store)
    if box is not None:
        _check_box(system, box, source)
        start = make_whole(start[None], box[None], bond_tree(len(start), _bonds(molecule)))[0]
    positions = _minimise(system, start, source)
    starts, start_boxes = _starts(spec.starts, molecule)
    phi, psi = backbone_dihedrals(topology)
    return PreparedSystem(
        name=spec.name,
        system_xml=openmm.XmlSerializer.serialize(system),
        topology_pdb=_pdb_text(*_only(topology, positions, stored)),
        positions=positions,
        feature_indices=features,
        stored_indices=stored,
        phi_indices=phi,
        psi_indices=psi,
        platform=platform,
        box=box,
        feature_tree=None if box is None else nearest_tree(positions[features], box),
        starts=starts,
        start_boxes=start_boxes,
    )


def _starts(paths: tuple[str, ...], molecule: Molecule) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return minimised structures to start from and their boxes; None where none are given."""
    if not paths:
        return None, None
    tree = bond_tree(len(molecule.positions), _bonds(molecule))
    starts, boxes = [], []
    for path in structure_files(paths):
        positions, box = read_structure(path, [atom.name for atom in molecule.topology.atoms()])
        if molecule.box is not None:
            box = molecule.box if box is None else box
            _check_box(molecule.system, box, f"starting structure {path}")
            positions = make_whole(positions[None], box[None], tree)[0]
            boxes.append(box)
        starts.append(_minimise(molecule.system, positions, f"starting structure {path}", box))
    return np.stack(starts), np.stack(boxes) if boxes else None


def _check(spec: SystemSpec) -> None:
    given = {name: value for name in _SOURCES if (value := getattr(spec, name)) is not None}
    if len(given) != 1:
        said = " and ".join(f"{name} {value!r}" for name, value in given.items()) or "nothing that it is made from"
        raise BadInput(f"system {spec.name!r} has {said}: give one of {', '.join(_SOURCES)}")
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
    files = spec.amber or spec.gromacs or spec.openmm_system
    if files is not None:
        return f"the system of {' and '.join(files)}"
    return f"PDB file {spec.pdb}" if spec.pdb is not None else f"sequence {spec.sequence!r}"


def _molecule(spec: SystemSpec, source: str) -> Molecule:
    """Return the molecule with its force field, its barostat included, before it is minimised."""
    if spec.openmm_system is not None:
        molecule = read_openmm(*_paths(spec.openmm_system))
        _warn_of_light_hydrogens(molecule, source)
        return molecule
    if spec.amber is not None:
        molecule = read_amber(*_paths(spec.amber), spec.solvent)
    elif spec.gromacs is not None:
        molecule = read_gromacs(*_paths(spec.gromacs), spec.solvent)
    else:
        molecule = _build(spec, source)
    if molecule.box is not None:
        add_barostat(molecule.system, spec.pressure_bar, spec.temperature_K)
    return molecule


def _paths(files: Files) -> tuple[Path, Path]:
    return Path(files[0]), Path(files[1])


def _build(spec: SystemSpec, source: str) -> Molecule:
    """Return the molecule of a sequence or PDB file."""
    solvent = spec.solvent or "implicit"
    modeller = _heavy_atoms(spec)
    force_field = load_force_field(spec.force_field, solvent)
    with _seeded(spec.seed):
        modeller.addHydrogens(pH=PH, platform=openmm.Platform.getPlatformByName("Reference"))
        check_templates(force_field, modeller.topology, source, ", ".join(spec.force_field) or "ff14SB")
        if solvent == "explicit":
            add_water(force_field, modeller, spec.padding_nm, spec.ionic_strength_M)
    system = build_system(force_field, modeller.topology, solvent)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer), dtype=np.float64)
    return Molecule(system, modeller.topology, positions)


def _warn_of_light_hydrogens(molecule: Molecule, source: str) -> None:
    bonded = {atom.index for bond in molecule.topology.bonds() for atom in bond}
    masses = [
        molecule.system.getParticleMass(atom.index).value_in_unit(unit.dalton)
        for atom in molecule.topology.atoms()
        if atom.element is app.element.hydrogen and atom.index in bonded and atom.residue.name != "HOH"
    ]
    if masses and min(masses) < _HEAVY_HYDROGEN_AMU:
        logger.warning("%s has hydrogens of %.3g Da: give --timestep-fs 2 or less", source, min(masses))


def _check_box(system: Any, box: np.ndarray, source: str) -> None:
    """Refuse a box in which an atom would meet itself within the cutoff."""
    cutoffs = [
        force.getCutoffDistance().value_in_unit(unit.nanometer)
        for force in system.getForces()
        if isinstance(force, openmm.NonbondedForce) and force.usesPeriodicBoundaryConditions()
    ]
    width = float(box.diagonal().min())
    if cutoffs and width < 2 * max(cutoffs):
        raise BadInput(
            f"{source} has a box {width:.3g} nm wide, less than twice the cutoff of {max(cutoffs):g} nm: "
            "take a larger box (--padding-nm where water is added)"
        )


def _bonds(molecule: Molecule) -> Iterator[tuple[int, int]]:
    """Yield pairs of atoms that hang together, as the topology or the force field says: neither need say all."""
    for one, other in molecule.topology.bonds():
        yield one.index, other.index
    for i in range(molecule.system.getNumConstraints()):
        one, other, _ = molecule.system.getConstraintParameters(i)
        yield one, other
    for force in molecule.system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for i in range(force.getNumBonds()):
                one, other, _, _ = force.getBondParameters(i)
                yield one, other


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


def _minimise(system: Any, positions: Any, source: str, box: np.ndarray | None = None) -> np.ndarray:
    """Return relaxed positions (n_atoms, 3) in nm, the same on every call.

    GPUs and several CPU threads add forces in an order that changes; Reference and one thread do not.
    """
    platform = host_platform(system.getNumParticles())
    try:
        context = new_context(system, openmm.VerletIntegrator(0.001), platform)
        if box is not None and system.usesPeriodicBoundaryConditions():
            context.setPeriodicBoxVectors(*box)
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


def _only(topology: Any, positions: np.ndarray, indices: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the topology and the positions of some of the atoms."""
    if len(indices) == len(positions):
        return topology, positions
    kept = set(indices.tolist())
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.delete([atom for atom in topology.atoms() if atom.index not in kept])
    return modeller.topology, positions[indices]


def _pdb_text(topology: Any, positions: np.ndarray) -> str:
    """Return PDB text without OpenMM's header, which holds the date and so would change the digest."""
    text = io.StringIO()
    app.PDBFile.writeModel(topology, positions * unit.nanometer, text, keepIds=True)
    app.PDBFile.writeFooter(topology, text)
    return text.getvalue()


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
    context = new_context(system, integrator(dynamics), platform, dynamics.precision)
    context.setPositions(prepared.positions)
    return context
