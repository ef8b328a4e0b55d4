"""Read a protein and its ligands from a PDB file: mend what can be mended, refuse the rest by name."""

from __future__ import annotations

import io
import itertools
import logging
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from tasks.errors import BadInput

logger = logging.getLogger(__name__)

_AMINO_ACIDS = frozenset(
    {"ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"}
    | {"LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"}
)
_CAPS = frozenset({"ACE", "NME", "NH2"})
# Crystallographers put selenomethionine for methionine to solve the phase problem. It is the only
# residue replaced; others (phosphorylated, D-amino acids) are somebody's chemistry, and refused by name.
_REPLACED = {"MSE": "MET"}
# OpenMM maps the other names of water onto HOH, but not heavy water's.
_WATERS = frozenset({"HOH", "DOD"})
# A peptide bond measures 0.133 nm, and neighbours in space that miss a residue lie 0.25 nm apart or more.
_LONGEST_PEPTIDE_BOND_NM = 0.2
_OVERLAP_NM = 0.05


def read_pdb(path: Path, force_field: Any, name: str, *, seed: int) -> Any:
    """Return a PDBFixer of a file's protein, heavy atoms complete, and of its ligands, without water and ions.

    Parameters
    ----------
    force_field, name
        OpenMM's ForceField, and how messages call it. It must match every ligand, as the file has it: with all
        hydrogens and bonds.

    Raises
    ------
    BadInput
        When the file cannot be read, or holds what the force field cannot simulate.
    """
    fixer = _parse(path, _pdb_lines(path))
    # The crystal's cell means nothing without explicit solvent, and would end up in the System.
    fixer.topology.setPeriodicBoxVectors(None)
    _drop_solvent(fixer, path)
    _check_residues(fixer, path, force_field, name)
    _check_geometry(fixer, path)
    _mend(fixer, path, seed)
    return fixer


def _pdb_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"PDB file {path} cannot be read ({error.strerror}): give a readable file") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"PDB file {path} is not text: give an uncompressed PDB file") from error
    atoms = {number: line for number, line in enumerate(lines, 1) if line.startswith(("ATOM  ", "HETATM"))}
    if not atoms:
        raise BadInput(f"PDB file {path} holds no ATOM record: give a file in PDB format")
    for number, line in atoms.items():
        _check_position(path, number, line)
    if sum(line.startswith("MODEL ") for line in lines) > 1:
        logger.info("%s: of several models the first is used", path)
    if any(line[16].strip() for line in atoms.values()):
        logger.info("%s: of alternate locations the first is used", path)
    return lines


def _check_position(path: Path, number: int, line: str) -> None:
    """Refuse an ATOM record whose x, y, z (columns 31 to 54) are not three finite numbers."""
    try:
        finite = all(math.isfinite(float(line[start : start + 8])) for start in (30, 38, 46))
    except ValueError:
        finite = False
    if not finite:
        raise BadInput(
            f"PDB file {path}: line {number} has no position in columns 31 to 54: mend or remove that line"
        )


def _parse(path: Path, lines: list[str]) -> Any:
    from pdbfixer import PDBFixer

    reference = openmm.Platform.getPlatformByName("Reference")
    try:
        with warnings.catch_warnings():
            # OpenMM warns of atoms and residue numbers that occur twice, and then takes one of them.
            warnings.simplefilter("error", UserWarning)
            return PDBFixer(pdbfile=io.StringIO("\n".join(lines)), platform=reference)
    except (ValueError, IndexError, AttributeError, KeyError, UserWarning) as error:
        raise BadInput(
            f"PDB file {path} cannot be understood ({' '.join(str(error).split())}): mend it or fetch it anew"
        ) from error


def _drop_solvent(fixer: Any, path: Path) -> None:
    """Delete water and lone atoms, which are ions, and log what went."""
    dropped = [residue for residue in fixer.topology.residues() if _is_solvent(residue)]
    if not dropped:
        return
    modeller = app.Modeller(fixer.topology, fixer.positions)
    modeller.delete(dropped)
    fixer.topology, fixer.positions = modeller.topology, modeller.positions
    kinds = sorted({residue.name for residue in dropped})
    logger.info("%s: %d residues dropped, the solvent is implicit: %s", path, len(dropped), ", ".join(kinds))


def _is_solvent(residue: Any) -> bool:
    if residue.name in _WATERS:
        return True
    return len(residue) == 1 and not _in_chain(residue)


def _in_chain(residue: Any) -> bool:
    """Return whether a residue is a link of a protein's chain, and no ligand."""
    return residue.name in _AMINO_ACIDS | _CAPS | _REPLACED.keys()


def _check_residues(fixer: Any, path: Path, force_field: Any, name: str) -> None:
    """Refuse what neither is an amino acid nor known to the force field, and amino acids without a backbone."""
    residues = list(fixer.topology.residues())
    unknown = [residue for residue in force_field.getUnmatchedResidues(fixer.topology) if not _in_chain(residue)]
    if unknown:
        raise BadInput(
            f"PDB file {path} holds {listed(unknown)}, which {name} does not know: remove it, or add parameters with "
            "--forcefield (the file must have all its hydrogens, and CONECT records of its bonds), or give the files "
            "of another program (--amber, --gromacs, --openmm-system)"
        )
    if not any(residue.name in _AMINO_ACIDS | _REPLACED.keys() for residue in residues):
        raise BadInput(f"PDB file {path} holds no amino acid: give a protein or a peptide")
    for residue in residues:
        missing = {"N", "CA", "C"} - {atom.name for atom in residue.atoms()}
        if missing and _in_chain(residue) and residue.name not in _CAPS:
            raise BadInput(
                f"PDB file {path}: {_label(residue)} lacks {', '.join(sorted(missing))} of its backbone: "
                "complete it with a modelling program, or remove it at a chain's end"
            )


def _check_geometry(fixer: Any, path: Path) -> None:
    """Refuse atoms on top of each other, and gaps in a chain."""
    positions = np.array(fixer.positions.value_in_unit(unit.nanometer))
    atoms = list(fixer.topology.atoms())
    overlap = _overlapping(positions)
    if overlap is not None:
        one, other = (_atom_label(atoms[index]) for index in overlap)
        raise BadInput(f"PDB file {path}: {one} and {other} lie on top of each other: remove one")
    for chain in fixer.topology.chains():
        for before, after in itertools.pairwise(filter(_in_chain, chain.residues())):
            distance = _peptide_bond_nm(before, after, positions)
            if distance > _LONGEST_PEPTIDE_BOND_NM:
                raise BadInput(
                    f"PDB file {path}: the chain is broken between {_label(before)} and {_label(after)}, "
                    f"{10 * distance:.1f} A apart: model the missing residues, or put TER there"
                )


def _overlapping(positions: np.ndarray) -> tuple[int, int] | None:
    from MDAnalysis.lib.distances import self_capped_distance

    pairs = self_capped_distance(positions.astype(np.float32), max_cutoff=_OVERLAP_NM, return_distances=False)
    return None if len(pairs) == 0 else (int(pairs[0][0]), int(pairs[0][1]))


def _peptide_bond_nm(before: Any, after: Any, positions: np.ndarray) -> float:
    """Return the length of the bond between two residues; 0 where a cap lacks an atom and will be mended."""
    carbon = [atom.index for atom in before.atoms() if atom.name == "C"]
    nitrogen = [atom.index for atom in after.atoms() if atom.name == "N"]
    if not (carbon and nitrogen):
        return 0.0
    return float(np.linalg.norm(positions[carbon[0]] - positions[nitrogen[0]]))


def _mend(fixer: Any, path: Path, seed: int) -> None:
    """Replace selenomethionine and add missing heavy atoms, in place."""
    fixer.nonstandardResidues = [
        (residue, _REPLACED[residue.name]) for residue in fixer.topology.residues() if residue.name in _REPLACED
    ]
    for residue, name in fixer.nonstandardResidues:
        logger.info("%s: %s becomes %s", path, _label(residue), name)
    fixer.replaceNonstandardResidues()
    # Whole residues are not invented: a chain may begin or end later than its SEQRES says.
    fixer.missingResidues = {}
    fixer.findMissingAtoms()
    if not (fixer.missingAtoms or fixer.missingTerminals):
        return
    for residue, missing in fixer.missingAtoms.items():
        logger.info("%s: %s gets %s", path, _label(residue), ", ".join(atom.name for atom in missing))
    try:
        fixer.addMissingAtoms(seed=seed)
    except (ValueError, openmm.OpenMMException) as error:
        raise BadInput(
            f"PDB file {path} lacks atoms that cannot be added ({error}): complete it with a modelling program"
        ) from error


def listed(residues: Iterable[Any]) -> str:
    """Return the labels of residues, at most five of them."""
    labels = [_label(residue) for residue in residues]
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _label(residue: Any) -> str:
    return f"residue {residue.name} {residue.chain.id.strip()}{residue.id}{residue.insertionCode}".strip()


def _atom_label(atom: Any) -> str:
    return f"atom {atom.name} of {_label(atom.residue)}"
