"""A structure to steer to, from a file, as the model would see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import BadInput
from tasks.periodic import make_whole
from tasks.reading import box_around, open_atoms, reading
from tasks.selection import MIN_FEATURES, SALT


def read_target(
    path: Path, topology: Any, features: np.ndarray, tree: np.ndarray | None, flag: str = "--policy"
) -> np.ndarray:
    """Return where the atoms that the model sees are in a structure file.

    Atoms are matched by name within residues, and residues by their order: their numbers and names differ from one
    program to the next. Hydrogens, water and whatever else has none of these atoms is passed over.

    Parameters
    ----------
    topology
        OpenMM's Topology of the system.
    features : ndarray of shape (n_features,), int64
        Atoms that the model sees.
    tree : ndarray of shape (n_features - 1, 2), int64
        As `tasks.prepared.PreparedSystem.feature_tree`; puts a target with a box together.
    flag
        How messages say where the file is named.

    Returns
    -------
    ndarray of shape (n_features, 3), float64
        In nm.

    Raises
    ------
    BadInput
        When the file cannot be read or does not hold these atoms.
    """
    said = f"{flag} rmsd:{path}"
    if len(features) < MIN_FEATURES:
        raise BadInput(
            f"{said} measures a change of shape, and {len(features)} atoms have none: choose another {flag}"
        )
    ours = _names_by_residue(topology, features)
    wanted = {name for names in ours for name in names}
    with reading(said):
        atoms = open_atoms(path)
        box = box_around(atoms)
        solute = atoms.select_atoms(f"not water and not {SALT}")
        theirs = [residue.atoms for residue in solute.residues if wanted & set(residue.atoms.names)]
    if len(theirs) != len(ours):
        raise BadInput(
            f"{said} has {len(theirs)} residues with atoms of the names that the model sees, and the system "
            f"{len(ours)}: cut the file to the residues of the system, or choose other atoms by --features"
        )
    positions = np.concatenate([_positions(said, *pair) for pair in zip(ours, theirs, strict=True)])
    if not np.isfinite(positions).all():
        raise BadInput(f"{said} holds coordinates that are no numbers: write it again")
    return positions if tree is None or box is None else make_whole(positions[None], box[None], tree)[0]


def _names_by_residue(topology: Any, features: np.ndarray) -> list[list[str]]:
    atoms = list(topology.atoms())
    residues: dict[int, list[str]] = {}
    for index in features:
        residues.setdefault(atoms[index].residue.index, []).append(atoms[index].name)
    return list(residues.values())


def _positions(said: str, names: list[str], atoms: Any) -> np.ndarray:
    """Return positions (n_names, 3) of a residue's atoms in nm; of alternate locations the first."""
    # The last one to be put in stays.
    position_of = {str(atom.name): atom.position for atom in reversed(atoms)}
    lacking = [name for name in names if name not in position_of]
    if lacking:
        residue = atoms[0].residue
        raise BadInput(
            f"{said} lacks atom {lacking[0]} of residue {residue.resname} {residue.resid}, which the model sees: "
            "add it (topology.pdb of a run has the names), or choose atoms that are there by --features 'name CA'"
        )
    return np.array([position_of[name] for name in names], dtype=np.float64) / 10
