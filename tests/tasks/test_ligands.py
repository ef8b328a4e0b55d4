"""A protein with a ligand, from a PDB file with a force field of the user's own, and as OpenMM serialised it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from tasks.errors import BadInput
from tasks.prepared import PreparedSystem
from tasks.selection import select_atoms
from tasks.systems import SystemSpec, prepare
from tests.benzene import PROTEIN, write_complex, write_parameters, write_system


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The complex, and the ligand's parameters."""
    folder = tmp_path_factory.mktemp("complex")
    return write_complex(folder, "AKA"), write_parameters(folder)


@pytest.fixture(scope="module")
def prepared(files: tuple[Path, Path]) -> PreparedSystem:
    structure, parameters = files
    return prepare(SystemSpec("complex", pdb=str(structure), force_field=(PROTEIN, str(parameters)), platform="CPU"))


def energy(system: openmm.System, positions: np.ndarray) -> float:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    return context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def test_a_ligand_that_the_force_field_knows_is_kept(prepared: PreparedSystem) -> None:
    names = [line[17:20] for line in prepared.topology_pdb.splitlines() if line.startswith(("ATOM", "HETATM"))]
    assert names.count("BNZ") == 12
    assert prepared.stored_indices.tolist() == list(range(prepared.n_atoms)), "trajectories have it"
    heavy_ligand = [i for i, line in enumerate(names) if line == "BNZ"][:6]
    assert set(heavy_ligand) <= set(prepared.feature_indices.tolist()), "the model sees it"
    assert "GBSAOBCForce" in prepared.system_xml


def test_the_ligand_stays_flat_and_in_one_piece(prepared: PreparedSystem) -> None:
    ring = prepared.positions[-12:-6]
    np.testing.assert_allclose(np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1), 0.139, atol=0.005)
    assert np.linalg.svd(ring - ring.mean(axis=0))[1][-1] < 0.01


def test_both_ways_in_give_the_complex_one_energy(
    files: tuple[Path, Path], prepared: PreparedSystem, tmp_path: Path
) -> None:
    xml, _ = write_system(tmp_path, *files)
    vacuum = SystemSpec("vacuum", pdb=str(files[0]), force_field=(PROTEIN, str(files[1])), solvent="vacuum")
    ours = openmm.XmlSerializer.deserialize(prepare(vacuum).system_xml)
    theirs = openmm.XmlSerializer.deserialize(xml.read_text())
    assert energy(ours, prepared.positions) == pytest.approx(energy(theirs, prepared.positions), abs=1e-3)


def without(kind: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [
        line for line in lines if not (line.startswith("CONECT") if kind == "bonds" else bare(line))
    ]


def bare(line: str) -> bool:
    return line.startswith("HETATM") and line[76:78].strip() == "H"


@pytest.mark.parametrize(
    ("change", "with_parameters", "said"),
    [
        (lambda lines: lines, False, "which ff14SB does not know"),
        (without("bonds"), True, "benzene.xml does not know: remove it, or add parameters with --forcefield"),
        (without("hydrogens"), True, "the file must have all its hydrogens, and CONECT records of its bonds"),
    ],
)
def test_a_ligand_that_the_force_field_does_not_match_is_named_with_the_remedies(
    files: tuple[Path, Path],
    tmp_path: Path,
    change: Callable[[list[str]], list[str]],
    with_parameters: bool,
    said: str,
) -> None:
    path = tmp_path / "changed.pdb"
    path.write_text("\n".join(change(files[0].read_text().splitlines())))
    force_field = (PROTEIN, str(files[1])) if with_parameters else ()
    with pytest.raises(BadInput, match=said) as caught:
        prepare(SystemSpec("complex", pdb=str(path), force_field=force_field, platform="CPU"))
    assert "residue BNZ" in str(caught.value)


def test_the_model_of_a_large_protein_sees_alpha_carbons_and_no_ligand_unless_asked(tmp_path: Path) -> None:
    text = write_complex(tmp_path, "A" * 40).read_text()
    seen, kept, _ = select_atoms(text)
    assert len(seen) == 40
    topology = app.PDBFile(str(tmp_path / "complex.pdb")).topology
    assert len(kept) == topology.getNumAtoms()
    both, _, _ = select_atoms(text, "name CA or (resname BNZ and not element H)")
    assert len(both) == 46
