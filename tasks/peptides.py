"""Structures of peptides from their sequence: heavy atoms at chosen backbone dihedrals, caps if wanted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.errors import BadInput

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"

EXTENDED_PHI_DEG = -120.0
EXTENDED_PSI_DEG = 140.0
# The ring of proline holds phi near this value, whatever the rest of the chain does.
PROLINE_PHI_DEG = -65.0


def peptide_pdb(
    sequence: str,
    *,
    cap: bool = False,
    phi_deg: Sequence[float] | None = None,
    psi_deg: Sequence[float] | None = None,
) -> str:
    """Return a peptide's heavy atoms as PDB text, chain A, residues numbered from 1 (ACE is 1 where capped).

    Parameters
    ----------
    sequence
        One-letter codes of the twenty amino acids, in capitals.
    cap
        Put ACE before and NME behind the sequence; otherwise the ends are free (with OXT).
    phi_deg, psi_deg
        Backbone dihedrals, one per letter; by default those of an extended chain. Without caps the first phi
        and the last psi do not exist, and what stands there is not used.

    Raises
    ------
    BadInput
        For letters that are no amino acid, an empty sequence, or dihedrals that do not match it.
    """
    check_sequence(sequence)
    phi = _phi_of(sequence) if phi_deg is None else _checked("phi_deg", phi_deg, sequence)
    psi = [EXTENDED_PSI_DEG] * len(sequence) if psi_deg is None else _checked("psi_deg", psi_deg, sequence)
    if not cap:
        return _pdb_text(_backbone(sequence, phi, psi, free_end=True))
    structure = _backbone(
        f"G{sequence}G",
        [EXTENDED_PHI_DEG, *phi, EXTENDED_PHI_DEG],
        [EXTENDED_PSI_DEG, *psi, EXTENDED_PSI_DEG],
        free_end=False,
    )
    _turn_ends_into_caps(structure)
    return _pdb_text(structure)


def check_sequence(sequence: str) -> None:
    """Raise `BadInput` unless the sequence can be built."""
    if not sequence:
        raise BadInput("the sequence is empty: give one-letter codes of amino acids, such as YYDPETGTWY")
    wrong = sorted(set(sequence) - set(AMINO_ACIDS))
    if wrong:
        raise BadInput(
            f"sequence {sequence!r} holds {', '.join(map(repr, wrong))}, which names no amino acid: "
            f"use the capital letters {AMINO_ACIDS}"
        )


def _phi_of(sequence: str) -> list[float]:
    return [PROLINE_PHI_DEG if letter == "P" else EXTENDED_PHI_DEG for letter in sequence]


def _checked(name: str, angles: Sequence[float], sequence: str) -> list[float]:
    if len(angles) != len(sequence):
        raise BadInput(
            f"{name} holds {len(angles)} angles for the {len(sequence)} residues of {sequence!r}: "
            "give one per residue"
        )
    if not np.isfinite(angles).all():
        raise BadInput(f"{name} of {sequence!r} holds {list(angles)}: give finite angles in degrees")
    return list(angles)


def _backbone(sequence: str, phi_deg: list[float], psi_deg: list[float], *, free_end: bool) -> Any:
    """Return a Biopython structure of the residues."""
    from PeptideBuilder import PeptideBuilder

    structure = PeptideBuilder.make_structure(sequence, phi_deg[1:], psi_deg[:-1])
    if free_end:
        # Biopython divides 0 by 0 where a dihedral, as here, is exactly 180 degrees; the angle comes out right.
        with np.errstate(invalid="ignore"):
            PeptideBuilder.add_terminal_OXT(structure)
    return structure


def _turn_ends_into_caps(structure: Any) -> None:
    """Turn the first and last glycine into ACE (CH3, C, O) and NME (N, C), in place.

    PDBFixer adds caps too, but fails on a single residue.
    """
    residues = list(structure.get_residues())
    _rename(residues[0], "ACE", {"CA": "CH3", "C": "C", "O": "O"})
    _rename(residues[-1], "NME", {"N": "N", "CA": "C"})


def _rename(residue: Any, name: str, atom_names: dict[str, str]) -> None:
    """Rename a residue and those of its atoms that are listed; drop the others."""
    kept = [atom for atom in residue if atom.name in atom_names]
    for atom in list(residue):
        residue.detach_child(atom.id)
    for atom in kept:
        atom.name = atom.id = atom_names[atom.name]
        atom.fullname = f" {atom.name:<3}"
        residue.add(atom)
    residue.resname = name


def _pdb_text(structure: Any) -> str:
    from Bio.PDB import PDBIO

    writer = PDBIO()
    writer.set_structure(structure)
    text = io.StringIO()
    writer.save(text)
    return text.getvalue()
