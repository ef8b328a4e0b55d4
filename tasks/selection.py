"""Which atoms the model sees, trajectories keep and equilibration restrains, and which make dihedrals."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from tasks.errors import BadInput

# From this many residues on a model that sees every heavy atom costs more than it learns.
CA_ONLY_RESIDUES = 40
# Fewer points have no shape.
MIN_FEATURES = 3
# Salt, as Amber, CHARMM and GROMACS name it; other ions may belong to the molecule.
SALT = "resname NA CL K NA+ CL- K+ Na+ Cl- SOD CLA POT"


def select_atoms(
    topology_pdb: str, features: str | None = None, store: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the atoms that the model sees, that trajectories keep, and the solute's heavy ones, as int64 indices.

    Parameters
    ----------
    features
        MDAnalysis selection; None for heavy atoms, or the alpha carbons of solutes of 40 residues or more.
    store
        MDAnalysis selection; None for everything but water and its salt.

    Raises
    ------
    BadInput
        For a selection that MDAnalysis does not understand, or that leaves too few atoms.
    """
    import MDAnalysis

    with warnings.catch_warnings():
        # It warns of columns that we leave empty (masses, charges, a box).
        warnings.simplefilter("ignore", UserWarning)
        universe = MDAnalysis.Universe(io.StringIO(topology_pdb), format="PDB", topology_format="PDB")
        dissolved = universe.select_atoms(f"not water and not {SALT}")
        # A box of nothing but water is a molecule too.
        solute = dissolved or universe.atoms
        kept = solute if store is None else _selected(universe, "--store", store, 1)
        seen = _seen(solute) if features is None else _selected(universe, "--features", features, MIN_FEATURES)
        heavy = dissolved.select_atoms("not element H")
    return seen.indices.astype(np.int64), kept.indices.astype(np.int64), heavy.indices.astype(np.int64)


def _seen(solute: Any) -> Any:
    alpha_carbons = solute.select_atoms("protein and name CA")
    if len(solute.residues) >= CA_ONLY_RESIDUES and len(alpha_carbons) >= MIN_FEATURES:
        return alpha_carbons
    heavy = solute.select_atoms("not element H")
    return heavy if len(heavy) >= MIN_FEATURES else solute


def _selected(universe: Any, flag: str, selection: str, at_least: int) -> Any:
    from MDAnalysis.exceptions import NoDataError, SelectionError

    try:
        atoms = universe.select_atoms(selection)
    except (SelectionError, NoDataError, ValueError, TypeError, AttributeError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"{flag} {selection!r} is no selection that MDAnalysis understands ({reason[:200]}): "
            "give one such as 'protein and name CA'"
        ) from error
    if len(atoms) < at_least:
        raise BadInput(
            f"{flag} {selection!r} selects {len(atoms)} atoms and must select {at_least} or more: "
            "look into topology.pdb of a run for names and numbers"
        )
    return atoms


def backbone_dihedrals(topology: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return atom indices of phi and psi, (n, 4) each, of the residues of an OpenMM Topology that have both."""
    # Amber's topologies put several molecules into one chain: neighbours in it need not be bonded.
    bonded = {(one.index, other.index) for bond in topology.bonds() for one, other in (bond, reversed(bond))}
    phi, psi = [], []
    for chain in topology.chains():
        named = [{atom.name: atom.index for atom in residue.atoms()} for residue in chain.residues()]
        for before, here, after in zip(named, named[1:], named[2:], strict=False):
            if not ("C" in before and {"N", "CA", "C"} <= here.keys() and "N" in after):
                continue
            if (before["C"], here["N"]) in bonded and (here["C"], after["N"]) in bonded:
                phi.append([before["C"], here["N"], here["CA"], here["C"]])
                psi.append([here["N"], here["CA"], here["C"], after["N"]])
    return np.array(phi, dtype=np.int64).reshape(-1, 4), np.array(psi, dtype=np.int64).reshape(-1, 4)
