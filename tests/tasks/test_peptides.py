import io

import MDAnalysis
import numpy as np
import pytest

from tasks.errors import BadInput
from tasks.peptides import AMINO_ACIDS, EXTENDED_PHI_DEG, EXTENDED_PSI_DEG, PROLINE_PHI_DEG, peptide_pdb

# Backbone of CLN025 in PDB entry 2RVD; the first phi and the last psi do not exist.
CLN025 = "YYDPETGTWY"
CLN025_PHI = [0.0, -81, -111, -92, -102, -136, 80, -142, -88, -77]
CLN025_PSI = [154.0, 155, 108, 4, -11, 1, 69, 132, 83, 0]


def read(pdb: str) -> MDAnalysis.Universe:
    return MDAnalysis.Universe(io.StringIO(pdb), format="PDB", topology_format="PDB")


def angles(selections: list) -> np.ndarray:
    return np.array([selection.dihedral.value() for selection in selections])


def assert_same_angle(found: np.ndarray, wanted: np.ndarray) -> None:
    # 0.001 A of the PDB format moves a dihedral by up to 0.1 degree.
    assert np.abs((found - wanted + 180) % 360 - 180).max() < 0.2


def test_default_is_an_extended_chain() -> None:
    residues = read(peptide_pdb("AKPWG")).residues
    phi = angles([residue.phi_selection() for residue in residues[1:]])
    psi = angles([residue.psi_selection() for residue in residues[:-1]])
    omega = angles([residue.omega_selection() for residue in residues[:-1]])
    assert_same_angle(phi, np.array([EXTENDED_PHI_DEG, PROLINE_PHI_DEG, EXTENDED_PHI_DEG, EXTENDED_PHI_DEG]))
    assert_same_angle(psi, np.full(4, EXTENDED_PSI_DEG))
    assert_same_angle(omega, np.full(4, 180.0))


def test_given_dihedrals_are_built() -> None:
    residues = read(peptide_pdb(CLN025, phi_deg=CLN025_PHI, psi_deg=CLN025_PSI)).residues
    assert_same_angle(angles([residue.phi_selection() for residue in residues[1:]]), np.array(CLN025_PHI[1:]))
    assert_same_angle(angles([residue.psi_selection() for residue in residues[:-1]]), np.array(CLN025_PSI[:-1]))


def test_dihedrals_of_a_capped_residue_are_built() -> None:
    alanine = read(peptide_pdb("A", cap=True, phi_deg=[57], psi_deg=[47])).residues[1]
    assert_same_angle(
        angles([alanine.phi_selection(), alanine.psi_selection()]),
        np.array([57.0, 47.0]),
    )


def test_caps_hold_the_heavy_atoms_of_ace_and_nme() -> None:
    universe = read(peptide_pdb("KV", cap=True))
    assert list(universe.residues.resnames) == ["ACE", "LYS", "VAL", "NME"]
    assert list(universe.residues.resids) == [1, 2, 3, 4]
    assert list(universe.residues[0].atoms.names) == ["CH3", "C", "O"]
    assert list(universe.residues[-1].atoms.names) == ["N", "C"]
    assert "OXT" not in universe.atoms.names


def test_free_end_has_both_oxygens() -> None:
    universe = read(peptide_pdb("KV"))
    assert list(universe.atoms.names).count("OXT") == 1
    assert universe.select_atoms("name OXT").residues[0].resname == "VAL"


@pytest.mark.filterwarnings("error")
def test_planar_ends_are_built_without_warnings() -> None:
    # The sequence is one of those for which Biopython warns.
    atoms = read(peptide_pdb("DLV")).residues[-1].atoms
    c, o, oxt = (atoms[atoms.names == name].positions[0] for name in ("C", "O", "OXT"))
    assert np.linalg.norm(o - c) == pytest.approx(1.23, abs=0.01)
    assert np.linalg.norm(oxt - c) == pytest.approx(1.23, abs=0.01)
    assert np.linalg.norm(oxt - o) == pytest.approx(2.1, abs=0.1)


@pytest.mark.parametrize("letter", sorted(set(AMINO_ACIDS) - {"G"}))
def test_amino_acids_are_left_handed(letter: str) -> None:
    atoms = read(peptide_pdb(f"A{letter}A")).residues[1].atoms
    n, ca, c, cb = (atoms[atoms.names == name].positions[0] for name in ("N", "CA", "C", "CB"))
    assert np.dot(np.cross(n - ca, c - ca), cb - ca) > 0


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "the sequence is empty: give one-letter codes"),
        ("ABZ", "'ABZ' holds 'B', 'Z', which names no amino acid: use the capital letters ACDEF"),
        ("ala", "'ala' holds 'a', 'l', which names no amino acid"),
        ("A A", "holds ' ', which names no amino acid"),
    ],
)
def test_bad_sequences_are_refused(sequence: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        peptide_pdb(sequence)


def test_dihedrals_must_match_the_sequence() -> None:
    with pytest.raises(BadInput, match="phi_deg holds 2 angles for the 3 residues of 'AAA': give one per"):
        peptide_pdb("AAA", phi_deg=[-60, -60])
    with pytest.raises(BadInput, match="psi_deg of 'AA' holds .*nan.*: give finite angles"):
        peptide_pdb("AA", psi_deg=[float("nan"), 0])
