"""Basis states: which files, how probable, checked against the system, taken as they are."""

from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import openmm
import pytest
from westpa.core.states import BasisState

from tasks.basis import read_basis_states
from tasks.engine import make_context
from tasks.errors import BadInput
from tasks.messages import SegmentSpec
from tasks.prepared import PreparedSystem
from tasks.systems import named_system, prepare
from tasks.transport import pack, unpack

NAMED = named_system("alanine-dipeptide", platform="Reference")


def write_pdb(prepared: PreparedSystem, positions: np.ndarray, path: Path) -> None:
    path.with_name(".topology.pdb").write_text(prepared.topology_pdb)
    universe = MDAnalysis.Universe(str(path.with_name(".topology.pdb")))
    universe.atoms.positions = positions * 10
    universe.atoms.write(str(path))


def write_state(prepared: PreparedSystem, segment: SegmentSpec, positions: np.ndarray, path: Path) -> None:
    context = make_context(prepared, replace(segment.dynamics, platform="Reference"))
    context.setPositions(positions)
    context.setVelocitiesToTemperature(300, 1)
    path.write_text(openmm.XmlSerializer.serialize(context.getState(positions=True, velocities=True)))


@pytest.fixture
def folder(alanine: PreparedSystem, segment: SegmentSpec, tmp_path: Path) -> Path:
    """A State and a PDB file, by name in this order."""
    path = tmp_path / "states"
    path.mkdir()
    write_state(alanine, segment, alanine.positions * 1.01, path / "a.xml")
    write_pdb(alanine, alanine.positions * 1.02, path / "b.pdb")
    return path


def with_states(folder: Path) -> PreparedSystem:
    return prepare(replace(NAMED, basis_states=str(folder)))


def test_all_files_are_as_probable_as_each_other(alanine: PreparedSystem, folder: Path) -> None:
    prepared = with_states(folder)
    assert prepared.basis_names == ("a.xml", "b.pdb")
    np.testing.assert_array_equal(prepared.basis_probabilities, [0.5, 0.5])
    # As they are, though the system itself is minimised; velocities are left to whoever begins there.
    assert set(prepared.basis()) == {"positions"}
    np.testing.assert_array_equal(prepared.basis()["positions"][0], alanine.positions * 1.01)
    np.testing.assert_allclose(prepared.basis()["positions"][1], alanine.positions * 1.02, atol=6e-5)
    arrived = PreparedSystem.from_arrays(unpack(pack(prepared.to_arrays())))
    assert (arrived.basis_names, arrived.digest) == (prepared.basis_names, prepared.digest)
    np.testing.assert_array_equal(arrived.basis_probabilities, prepared.basis_probabilities)


def test_a_list_is_read_as_westpa_reads_it(folder: Path) -> None:
    (folder / "bstates.txt").write_text("# label, probability, file\n0  3.0 b.pdb\n\n1\t1 a.xml # the State\n")
    (folder / "c.pdb").write_text("not listed, not read")
    prepared = with_states(folder)
    theirs = BasisState.states_from_file(str(folder / "bstates.txt"))
    assert prepared.basis_names == tuple(state.auxref for state in theirs) == ("b.pdb", "a.xml")
    probabilities = np.array([state.probability for state in theirs])
    np.testing.assert_array_equal(prepared.basis_probabilities, probabilities / probabilities.sum())


def test_a_list_may_name_files_in_folders(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "b.pdb").rename(folder / "one" / "b.pdb")
    (folder / "bstates.txt").write_text("0 1 one/b.pdb\n")
    assert with_states(folder).basis_names == ("one/b.pdb",)


def test_fifty_states_keep_their_probabilities(tmp_path: Path) -> None:
    lines = [f"{k} {1 / 50!r} {k:02d}.pdb" for k in range(50)]
    (tmp_path / "bstates.txt").write_text("\n".join(lines))
    for k in range(50):
        (tmp_path / f"{k:02d}.pdb").touch()
    paths, probabilities = read_basis_states(tmp_path)
    assert [path.name for path in paths] == [f"{k:02d}.pdb" for k in range(50)]
    assert probabilities.sum() == pytest.approx(1, abs=1e-15)


def test_without_any_there_is_the_system_itself(alanine: PreparedSystem) -> None:
    assert alanine.basis_names == ("alanine-dipeptide",)
    np.testing.assert_array_equal(alanine.basis_probabilities, [1.0])


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("0 1.0", "line 1 has 2 words: give a label, a probability and a file"),
        ("0 1 a.xml\n1 1 b.pdb more", "line 2 has 4 words"),
        ("0 half a.xml", "line 1 has probability half: give a number above 0"),
        ("0 nan a.xml", "line 1 has probability nan"),
        ("0 0 a.xml", "line 1 has probability 0"),
        ("0 -1 a.xml", "line 1 has probability -1"),
        ("0 1 c.pdb", "line 1 names .*c.pdb, which is no file: put it there, or remove the line"),
        ("# nothing", "is a folder without basis states"),
        (b"\xff\xfe\x00", "bstates.txt cannot be used .*give a text file"),
    ],
)
def test_bad_lists_are_refused(folder: Path, listed: str | bytes, said: str) -> None:
    (folder / "bstates.txt").write_bytes(listed if isinstance(listed, bytes) else listed.encode())
    with pytest.raises(BadInput, match=f"^--basis-states {folder}.*{said}") as caught:
        with_states(folder)
    assert "\n" not in str(caught.value)


def cut(lines: list[str]) -> list[str]:
    return lines[:-1]


def renamed(lines: list[str]) -> list[str]:
    return [*lines[:4], lines[4][:12] + " CX " + lines[4][16:], *lines[5:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "b.pdb has 21 atoms and the system 22: give structures with every atom"),
        (renamed, "b.pdb has CX as atom 5 where the system has C: give structures whose atoms are in"),
        (lambda lines: ["hello"], "b.pdb cannot be used .*give a structure file"),
    ],
)
def test_a_bad_structure_is_named(folder: Path, change, said: str) -> None:
    lines = (folder / "b.pdb").read_text().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    (folder / "b.pdb").write_text("\n".join([*change(atoms), "END", ""]))
    with pytest.raises(BadInput, match=f"^--basis-states {folder}/{said}") as caught:
        with_states(folder)
    assert "\n" not in str(caught.value)


def test_a_bad_state_is_named(folder: Path, segment: SegmentSpec) -> None:
    well = prepare(named_system("double-well"))
    write_state(well, segment, well.positions, folder / "a.xml")
    with pytest.raises(BadInput, match=f"^--basis-states {folder}/a.xml has 1 atoms and the system 22"):
        with_states(folder)
    (folder / "a.xml").write_text("<State>")
    with pytest.raises(BadInput, match=f"^--basis-states {folder}/a.xml cannot be used .*give a State"):
        with_states(folder)
    (folder / "a.xml").unlink()
    (folder / "b.pdb").unlink()
    with pytest.raises(BadInput, match="is a folder without basis states: put PDB files"):
        with_states(folder)
    with pytest.raises(BadInput, match="none cannot be used .No such file.*: give a folder"):
        with_states(folder / "none")


def test_atoms_in_one_place_are_named(folder: Path, alanine: PreparedSystem, segment: SegmentSpec) -> None:
    write_state(alanine, segment, np.zeros((22, 3)), folder / "a.xml")
    with pytest.raises(BadInput, match=f"basis state {folder}/a.xml has energy .* look for atoms that overlap"):
        with_states(folder)


def test_two_kinds_of_starts_exclude_each_other(folder: Path) -> None:
    with pytest.raises(BadInput, match="--start .* and --basis-states .* both say where walkers begin: give one"):
        prepare(replace(NAMED, basis_states=str(folder), starts=(str(folder),)))
