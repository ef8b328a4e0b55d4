import io
from dataclasses import replace

import MDAnalysis
import numpy as np
import pytest
from MDAnalysis.analysis.dihedrals import Ramachandran

from tasks.features import CELL_DEG, coverage, dihedrals_deg, empty_cells, pc_cells, phi_psi_cells
from tasks.messages import Coverage, SegmentSpec, StoreSpec
from tasks.prepared import PreparedSystem
from tasks.simulate import run_segment
from tasks.systems import SystemSpec, prepare
from tasks.transport import fetch, ship

CELLS_PER_RESIDUE = 576


@pytest.fixture(scope="module")
def tetra() -> PreparedSystem:
    return prepare(SystemSpec("tetra", sequence="AGSA", cap=True, platform="Reference"))


@pytest.fixture(scope="module")
def frames(tetra: PreparedSystem, segment: SegmentSpec) -> np.ndarray:
    """4 ps of a peptide of four residues at 500 K, as (50, n_atoms, 3) float32 in nm."""
    inline = StoreSpec("inline", "inline")
    spec = replace(
        segment,
        system=ship(tetra.to_arrays(), inline),
        system_id=tetra.digest,
        start=ship({"positions": tetra.positions[None]}, inline),
        dynamics=replace(segment.dynamics, n_steps=1000, temperature_K=500.0),
    )
    return fetch(run_segment(spec).frames)["positions"]


def angles_by_mdanalysis(prepared: PreparedSystem, frames: np.ndarray) -> np.ndarray:
    """Return phi and psi of each residue in degrees, (n_frames, n_residues, 2)."""
    universe = MDAnalysis.Universe(
        io.StringIO(prepared.topology_pdb),
        10 * frames,
        format=MDAnalysis.coordinates.memory.MemoryReader,
        topology_format="PDB",
    )
    return Ramachandran(universe.select_atoms("not resname ACE NME")).run().results.angles


def butane(torsion_deg: float) -> np.ndarray:
    """Four points with a torsion angle, in nm."""
    turn = np.radians(torsion_deg)
    return np.array(
        [[0.1, 0.1, 0.0], [0.1, 0.0, 0.0], [0.3, 0.0, 0.0], [0.3, 0.1 * np.cos(turn), 0.1 * np.sin(turn)]],
        dtype=np.float32,
    )


ONE_TORSION = np.array([[0, 1, 2, 3]])


# ---- torsions


@pytest.mark.parametrize("wanted", [0.0, 60.0, -60.0, 89.0, -179.0, 179.0])
def test_torsions_have_iupacs_sign(wanted: float) -> None:
    assert dihedrals_deg(butane(wanted)[None], ONE_TORSION) == pytest.approx(wanted, abs=1e-3)


def test_torsions_are_those_of_mdanalysis(tetra: PreparedSystem, frames: np.ndarray) -> None:
    wanted = angles_by_mdanalysis(tetra, frames)
    assert wanted.shape == (50, 4, 2)
    for axis, indices in enumerate((tetra.phi_indices, tetra.psi_indices)):
        difference = dihedrals_deg(frames, indices) - wanted[:, :, axis]
        # Around the circle, since 180 may come back as -180.
        assert np.abs((difference + 180) % 360 - 180).max() < 0.01


# ---- Ramachandran cells


def test_cells_are_those_of_mdanalysis(tetra: PreparedSystem, frames: np.ndarray) -> None:
    cells = phi_psi_cells(frames, tetra.phi_indices, tetra.psi_indices)
    angles = angles_by_mdanalysis(tetra, frames)
    wanted = {
        (residue, *np.floor((angles[frame, residue] + 180) / CELL_DEG).astype(int))
        for frame in range(50)
        for residue in range(4)
    }
    assert cells.shape == (200,)
    assert len(set(cells)) == len(wanted) > 50
    numbered = {residue * CELLS_PER_RESIDUE + phi * 24 + psi for residue, phi, psi in wanted}
    assert set(cells.tolist()) == numbered


def test_cells_fit_the_mask(tetra: PreparedSystem, frames: np.ndarray) -> None:
    cells = phi_psi_cells(frames, tetra.phi_indices, tetra.psi_indices)
    assert len(empty_cells(4)) == 4 * CELLS_PER_RESIDUE
    # Frame by frame, each residue in a part of its own.
    assert (cells.reshape(50, 4) // CELLS_PER_RESIDUE == [0, 1, 2, 3]).all()


def test_a_turn_closes() -> None:
    # At 180 degrees float32 falls on either side.
    cells = {
        int(phi_psi_cells(butane(torsion)[None], ONE_TORSION, ONE_TORSION)[0])
        for torsion in (180.0, -180.0, 180.0 - 1e-6, -179.0, -166.0)
    }
    assert cells <= {0, 23 * 24 + 23}
    assert phi_psi_cells(butane(-164.0)[None], ONE_TORSION, ONE_TORSION)[0] == 25


def test_cells_do_not_move_with_the_molecule(tetra: PreparedSystem, frames: np.ndarray) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    moved = (frames @ turn + [1.0, -2.0, 0.5]).astype(np.float32)
    angles = [dihedrals_deg(positions, tetra.phi_indices) for positions in (frames, moved)]
    assert np.abs((angles[0] - angles[1] + 180) % 360 - 180).max() < 0.02


def test_without_torsions_there_are_no_cells_of_torsions(frames: np.ndarray) -> None:
    none = np.empty((0, 4), np.int64)
    assert dihedrals_deg(frames, none).shape == (50, 0)
    assert phi_psi_cells(frames, none, none).shape == (0,)


# ---- cells of principal components


def test_components_share_a_cell_within_half_a_unit() -> None:
    plane = np.array([[0.1, 0.1], [0.4, 0.4], [0.6, 0.4], [0.4, 0.6], [-0.1, 0.1]])
    cells = pc_cells(plane)
    assert cells[0] == cells[1]
    assert len(set(cells[1:].tolist())) == 4


def test_cells_count_what_a_histogram_counts() -> None:
    plane = np.random.default_rng(0).normal(0, 4, (500, 2))
    edges = np.arange(-25, 25.5, 0.5)
    counts, _, _ = np.histogram2d(*plane.T, bins=[edges, edges])
    cells = pc_cells(plane)
    assert len(set(cells.tolist())) == (counts > 0).sum()
    assert (np.bincount(cells, minlength=10_000).reshape(100, 100) == counts).all()


def test_components_beyond_the_edge_share_the_last_cell() -> None:
    far = np.array([[1e9, -1e9], [24.9, -24.9], [3e4, -3e4]])
    assert len(set(pc_cells(far).tolist())) == 1
    assert (pc_cells(np.array([[1e9, 1e9], [-1e9, -1e9]])) == [9999, 0]).all()


def test_further_components_play_no_part_and_a_lone_one_suffices() -> None:
    components = np.random.default_rng(2).normal(size=(40, 5))
    np.testing.assert_array_equal(pc_cells(components), pc_cells(components[:, :2]))
    lone = np.column_stack([components[:, 0], np.zeros(40)])
    np.testing.assert_array_equal(pc_cells(components[:, :1]), pc_cells(lone))


# ---- coverage


def test_coverage_names_what_it_counts() -> None:
    visited = empty_cells(2)
    visited[[0, 7, 600]] = True
    assert coverage(visited, 2) == Coverage("phi_psi_cells", 3.0, 15)
    plane = empty_cells(0)
    assert len(plane) == 10_000
    plane[pc_cells(np.array([[-1e9, 1e9]]))] = True
    assert coverage(plane, 0) == Coverage("pc_cells", 1.0, None)
