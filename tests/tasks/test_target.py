"""A target is read by the names of the atoms that the model sees, and frames are compared with it once superposed."""

import io
from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openmm import app, unit
from scipy.spatial.transform import Rotation

from tasks.errors import BadInput
from tasks.features import rmsd_nm
from tasks.peptides import peptide_pdb
from tasks.prepared import PreparedSystem
from tasks.systems import named_system, prepare
from tasks.target import read_target


@pytest.fixture(scope="module")
def peptide() -> app.PDBFile:
    """AGA without hydrogens."""
    return app.PDBFile(io.StringIO(peptide_pdb("AGA")))


@pytest.fixture
def file(peptide: app.PDBFile, tmp_path: Path) -> Path:
    path = tmp_path / "target.pdb"
    path.write_text(peptide_pdb("AGA"))
    return path


def in_nm(peptide: app.PDBFile) -> np.ndarray:
    return np.array(peptide.positions.value_in_unit(unit.nanometer))


def read(path: Path, peptide: app.PDBFile, names: str = "", tree: np.ndarray | None = None) -> np.ndarray:
    atoms = [atom for atom in peptide.topology.atoms() if not names or atom.name in names.split()]
    return read_target(path, peptide.topology, np.array([atom.index for atom in atoms]), tree)


def edit(path: Path, change) -> None:
    """Rewrite the lines of atoms."""
    lines = path.read_text().splitlines()
    atoms = [line for line in lines if line.startswith("ATOM")]
    path.write_text("\n".join([*change(atoms), "END"]) + "\n")


def test_atoms_are_found_by_name_whatever_else_is_there(file: Path, peptide: app.PDBFile) -> None:
    wanted = in_nm(peptide)

    def change(atoms: list[str]) -> list[str]:
        # Backwards within each residue, numbered from 40, of other names, with water that has an O as well.
        residues = [[line for line in atoms if line[25] == number] for number in "123"]
        shuffled = [line[:17] + "UNK" + line[20:22] + f"{40 + k:4d}" + line[26:] for k, residue in enumerate(residues)
                    for line in reversed(residue)]  # fmt: skip
        water = "HETATM   99  O   HOH A 101       1.000   1.000   1.000  1.00  0.00           O"
        ligand = "HETATM  100  C7  LIG A 102       1.000   1.000   1.000  1.00  0.00           C"
        return [*shuffled, water, ligand]

    edit(file, change)
    np.testing.assert_allclose(read(file, peptide), wanted, atol=1e-4)
    alpha = [atom.index for atom in peptide.topology.atoms() if atom.name == "CA"]
    np.testing.assert_allclose(read(file, peptide, "CA"), wanted[alpha], atol=1e-4)


def test_the_first_of_alternate_locations_counts(file: Path, peptide: app.PDBFile) -> None:
    def twice(atoms: list[str]) -> list[str]:
        return [f"{line[:16]}{place}{line[17:30]}{x:8.3f}{line[38:]}"
                for line in atoms for place, x in (("A", float(line[30:38])), ("B", 50.0))]  # fmt: skip

    edit(file, twice)
    np.testing.assert_allclose(read(file, peptide), in_nm(peptide), atol=1e-4)


def test_a_target_with_a_box_is_put_together(file: Path, peptide: app.PDBFile) -> None:
    universe = MDAnalysis.Universe(str(file))
    universe.dimensions = [20, 20, 20, 90, 90, 90]
    universe.atoms[4:].translate([20, 0, -20])
    universe.atoms.write(str(file))
    chain = np.array([(k, k - 1) for k in range(1, len(universe.atoms))])
    whole = read(file, peptide, tree=chain)
    np.testing.assert_allclose(whole - whole[0], in_nm(peptide) - in_nm(peptide)[0], atol=1e-3)


def refused(path: Path, peptide: app.PDBFile) -> str:
    with pytest.raises(BadInput) as error:
        read(path, peptide)
    assert str(error.value).startswith(f"--policy rmsd:{path} ")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_another_number_of_residues_is_refused(file: Path, peptide: app.PDBFile) -> None:
    edit(file, lambda atoms: [line for line in atoms if line[25] != "2"])
    assert "has 2 residues" in refused(file, peptide)


def test_a_missing_atom_is_named(file: Path, peptide: app.PDBFile) -> None:
    edit(file, lambda atoms: [line for line in atoms if not (line[25] == "3" and line[12:16].strip() == "CB")])
    sentence = refused(file, peptide)
    assert "lacks atom CB of residue ALA 3" in sentence
    assert "--features" in sentence


def test_a_file_that_is_not_there_or_no_structure(tmp_path: Path, peptide: app.PDBFile) -> None:
    assert "No such file" in refused(tmp_path / "none.pdb", peptide)
    (tmp_path / "folder.pdb").mkdir()
    assert "directory" in refused(tmp_path / "folder.pdb", peptide)
    for name in ("empty.pdb", "words.pdb", "words.txt"):
        (tmp_path / name).write_text("" if name.startswith("empty") else "no structure\n")
        assert "give a structure file" in refused(tmp_path / name, peptide)


def test_coordinates_that_are_no_numbers(file: Path, peptide: app.PDBFile) -> None:
    edit(file, lambda atoms: [f"{atoms[0][:30]}     nan{atoms[0][38:]}", *atoms[1:]])
    assert "no numbers" in refused(file, peptide)


@given(seed=st.integers(0, 2**32))
def test_the_distance_does_not_see_how_a_frame_lies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(12, 3))
    noise = rng.normal(size=(5, 12, 3)) * np.array([0, 0.1, 0.2, 0.4, 0.8])[:, None, None]
    frames = target + noise
    laid = np.stack([turn.apply(frame) for turn, frame in zip(Rotation.random(5, rng=rng), frames, strict=True)])
    moved = laid + rng.normal(size=(5, 1, 3))
    distances = rmsd_nm(moved.astype(np.float32), target)
    assert distances.dtype == np.float64
    assert distances[0] == pytest.approx(0, abs=1e-3)
    best = [Rotation.align_vectors(t := target - target.mean(0), f - f.mean(0))[0].apply(f - f.mean(0)) - t
            for f in frames]  # fmt: skip
    np.testing.assert_allclose(distances, np.sqrt((np.array(best) ** 2).sum(2).mean(1)), atol=1e-3)


def test_a_system_is_prepared_with_its_target(alanine: PreparedSystem, tmp_path: Path) -> None:
    path = tmp_path / "target.pdb"
    path.write_text(alanine.topology_pdb)
    prepared = prepare(replace(named_system("alanine-dipeptide", platform="Reference"), target=str(path)))
    assert prepared.target is not None
    np.testing.assert_allclose(prepared.target, alanine.positions[alanine.feature_indices], atol=1e-4)
    again = PreparedSystem.from_arrays(prepared.to_arrays())
    np.testing.assert_array_equal(again.target, prepared.target)
    assert again.digest == prepared.digest != alanine.digest
