"""From what a user names (a sequence, files) to a `PreparedSystem`, ready for steps of 4 fs."""

from __future__ import annotations

import io
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openmm
from openmm import app, unit

from tasks.basis import read_basis_states
from tasks.errors import BadInput
from tasks.inputs import Molecule, read_amber, read_gromacs, read_openmm
from tasks.messages import Solvent
from tasks.minimise import MINIMISER_STEPS, minimise
from tasks.pdb import read_pdb
from tasks.peptides import check_sequence, peptide_pdb
from tasks.periodic import bond_tree, make_whole, nearest_tree
from tasks.platforms import host_platform, resolve_platform
from tasks.prepared import PreparedSystem
from tasks.selection import backbone_dihedrals, select_atoms
from tasks.solvation import add_barostat, add_water, build_system, check_templates, load_force_field
from tasks.starts import Starts, bonds_of, check_box, read_starts
from tasks.structures import structure_files
from tasks.target import read_target
from tasks.wells import double_well

logger = logging.getLogger(__name__)

PH = 7.0

# Hydrogens below this mass do not bear steps of 4 fs.
_HEAVY_HYDROGEN_AMU = 2.0

Files = tuple[str, str]

_SOURCES = ("sequence", "pdb", "amber", "gromacs", "openmm_system", "particle")


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """A system to prepare, from a sequence, a PDB file, files of another program, or a particle: one of them.

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
    particle
        ``double-well``, one particle in a potential (`tasks.wells`).
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
    basis_states
        Path of a folder of structures with the same atoms and their probabilities (`tasks.basis`), to start from
        instead. They are a sample of some state, so they are taken as they are, and not minimised. Velocities of
        a State are left out: walkers draw theirs, or all that begin at one state would begin alike.
    minimise
        Relax structures; otherwise they are only checked.
    target, target_flag
        Path of a structure that frames are compared with, which holds at least what the model sees; and where the
        user named it.
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
    particle: Literal["double-well"] | None = None
    solvent: Solvent | None = None
    padding_nm: float = 1.0
    ionic_strength_M: float = 0.15
    pressure_bar: float = 1.0
    force_field: tuple[str, ...] = ()
    features: str | None = None
    store: str | None = None
    starts: tuple[str, ...] = ()
    basis_states: str | None = None
    target: str | None = None
    target_flag: Literal["--policy", "--pcoord"] = "--policy"
    minimise: bool = True
    temperature_K: float = 300.0
    platform: str = "auto"
    seed: int = 1


NAMED_SYSTEMS: Mapping[str, SystemSpec] = {
    "alanine-dipeptide": SystemSpec("alanine-dipeptide", sequence="A", cap=True),
    # CLN025 (Honda et al. 2008, doi:10.1021/ja8030533), the stabler chignolin.
    "chignolin": SystemSpec("chignolin", sequence="YYDPETGTWY"),
    "double-well": SystemSpec("double-well", particle="double-well"),
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
    platform = _platform(spec, topology.getNumAtoms())
    start = molecule.positions
    features, stored, restrained = select_atoms(_pdb_text(topology, start), spec.features, spec.store)
    if box is not None:
        check_box(system, box, source)
        start = make_whole(start[None], box[None], bond_tree(len(start), bonds_of(molecule)))[0]
    tree = None if box is None else nearest_tree(start[features], box)
    target = _target(spec, topology, features, tree)
    max_steps = MINIMISER_STEPS if spec.minimise else 0
    positions = minimise(system, start, source, max_steps=max_steps)
    starts = _starts(spec, molecule, max_steps)
    phi, psi = backbone_dihedrals(topology)
    return PreparedSystem(
        name=spec.name,
        system_xml=openmm.XmlSerializer.serialize(system),
        topology_pdb=_pdb_text(*_only(topology, positions, stored)),
        positions=positions,
        feature_indices=features,
        stored_indices=stored,
        restrained_indices=restrained,
        phi_indices=phi,
        psi_indices=psi,
        platform=platform,
        box=box,
        feature_tree=tree,
        starts=starts.positions,
        start_boxes=starts.boxes,
        start_names=starts.names,
        start_probabilities=starts.probabilities,
        target=target,
    )


def _platform(spec: SystemSpec, n_atoms: int) -> str:
    """Return the platform to run on: one particle is no work for a GPU, which ``auto`` would take."""
    if spec.particle is not None and spec.platform == "auto":
        return host_platform(n_atoms)
    return resolve_platform(spec.platform, n_atoms)


def _target(spec: SystemSpec, topology: Any, features: np.ndarray, tree: np.ndarray | None) -> np.ndarray | None:
    if spec.target is None:
        return None
    return read_target(Path(spec.target), topology, features, tree, spec.target_flag)


def _starts(spec: SystemSpec, molecule: Molecule, max_steps: int) -> Starts:
    """Return structures to start from, minimised so far; nothing where none are given."""
    if spec.basis_states is not None:
        paths, probabilities = read_basis_states(Path(spec.basis_states))
        starts = read_starts(paths, molecule, "--basis-states", max_steps=0, probabilities=probabilities)
        # A list may name files in folders of their own, all called alike.
        return replace(starts, names=tuple(os.path.relpath(path, spec.basis_states) for path in paths))
    if not spec.starts:
        return Starts()
    return read_starts(structure_files(spec.starts), molecule, "--start", max_steps=max_steps)


def _check(spec: SystemSpec) -> None:
    given = {name: value for name in _SOURCES if (value := getattr(spec, name)) is not None}
    if len(given) != 1:
        said = " and ".join(f"{name} {value!r}" for name, value in given.items()) or "nothing that it is made from"
        raise BadInput(f"system {spec.name!r} has {said}: give one of {', '.join(_SOURCES)}")
    if spec.pdb is not None and spec.cap:
        raise BadInput(f"cap is for sequences: put ACE and NME into {spec.pdb} or leave cap out")
    if spec.particle is not None and (spec.solvent is not None or spec.force_field):
        what = f"--solvent {spec.solvent}" if spec.solvent else f"--forcefield {','.join(spec.force_field)}"
        raise BadInput(f"{what} is for molecules and {spec.name} is a particle in a potential of its own: drop it")
    if spec.basis_states is not None and spec.starts:
        raise BadInput(
            f"--start {spec.starts[0]} and --basis-states {spec.basis_states} both say where walkers begin: "
            "give one of them"
        )
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
    if spec.particle is not None:
        return f"the particle of {spec.name}"
    return f"PDB file {spec.pdb}" if spec.pdb is not None else f"sequence {spec.sequence!r}"


def _molecule(spec: SystemSpec, source: str) -> Molecule:
    """Return the molecule with its force field, its barostat included, before it is minimised."""
    if spec.particle is not None:
        return double_well()
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
    force_field, name = load_force_field(spec.force_field, solvent), ", ".join(spec.force_field) or "ff14SB"
    modeller = _heavy_atoms(spec, force_field, name)
    with _seeded(spec.seed):
        modeller.addHydrogens(pH=PH, platform=openmm.Platform.getPlatformByName("Reference"))
        check_templates(force_field, modeller.topology, source, name)
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


def _heavy_atoms(spec: SystemSpec, force_field: Any, name: str) -> Any:
    """Return a Modeller of the structure before hydrogens are added to its protein."""
    if spec.pdb is not None:
        fixer = read_pdb(Path(spec.pdb), force_field, name, seed=spec.seed)
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
