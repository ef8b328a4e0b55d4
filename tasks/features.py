"""Numbers drawn from coordinates: RMSD, Ramachandran and principal-component cells, and their count (coverage)."""

from __future__ import annotations

import numpy as np

from tasks.messages import Coverage

CELL_DEG = 15
_CELLS_PER_TURN = 360 // CELL_DEG
_CELLS_PER_RESIDUE = _CELLS_PER_TURN**2

# Principal components are divided by their standard deviation in the first frames; cells are half of one wide and
# end at 25, where whatever lies beyond shares the last cell.
_PC_CELL_WIDTH = 0.5
_PC_CELLS = 100


def dihedrals_deg(positions: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return torsion angles in degrees, within -180 and 180.

    Parameters
    ----------
    positions : ndarray of shape (n_frames, n_atoms, 3), float32
        Coordinates in nm.
    indices : ndarray of shape (n_torsions, 4), int64

    Returns
    -------
    ndarray of shape (n_frames, n_torsions), float64
    """
    from MDAnalysis.lib.distances import calc_dihedrals

    corners = [positions[:, indices[:, k]].reshape(-1, 3) for k in range(4)]
    return np.asarray(np.degrees(calc_dihedrals(*corners)).reshape(len(positions), len(indices)))


def rmsd_nm(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the root-mean-square distance of each frame from a target, once superposed.

    Parameters
    ----------
    points : ndarray of shape (n_frames, n_points, 3)
        In nm.
    target : ndarray of shape (n_points, 3)

    Returns
    -------
    ndarray of shape (n_frames,), float64
    """
    from MDAnalysis.analysis.rms import rmsd

    return np.array([rmsd(frame, target, superposition=True) for frame in points], dtype=np.float64)


def phi_psi_cells(positions: np.ndarray, phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Return the Ramachandran cell of every residue in every frame.

    Parameters
    ----------
    positions : ndarray of shape (n_frames, n_atoms, 3), float32
        Coordinates in nm.
    phi, psi : ndarray of shape (n_residues, 4), int64
        Atoms of the backbone torsions.

    Returns
    -------
    ndarray of shape (n_frames * n_residues,), int64
        Numbers below ``n_residues * 576``; cells are `CELL_DEG` wide.
    """
    turns = [
        np.floor((dihedrals_deg(positions, torsion) + 180.0) / CELL_DEG).astype(np.int64) % _CELLS_PER_TURN
        for torsion in (phi, psi)
    ]
    residue = np.arange(len(phi), dtype=np.int64)
    return np.asarray((residue * _CELLS_PER_RESIDUE + turns[0] * _CELLS_PER_TURN + turns[1]).ravel())


def pc_cells(components: np.ndarray) -> np.ndarray:
    """Return the cell of each frame in the plane of its first two whitened components.

    Parameters
    ----------
    components : ndarray of shape (n_frames, >= 1), float
        Principal components of unit variance in the first frames.

    Returns
    -------
    ndarray of shape (n_frames,), int64
    """
    plane = np.zeros((len(components), 2))
    plane[:, : min(2, components.shape[1])] = components[:, :2]
    steps = np.clip(np.floor(plane / _PC_CELL_WIDTH) + _PC_CELLS // 2, 0, _PC_CELLS - 1).astype(np.int64)
    return np.asarray(steps[:, 0] * _PC_CELLS + steps[:, 1])


def empty_cells(n_residues: int) -> np.ndarray:
    """Return a mask of unvisited cells: Ramachandran cells, or the plane's where no residue has phi and psi."""
    return np.zeros(n_residues * _CELLS_PER_RESIDUE if n_residues else _PC_CELLS**2, dtype=bool)


def coverage(visited: np.ndarray, n_residues: int) -> Coverage:
    """Return the number of visited cells, named."""
    metric, width = ("phi_psi_cells", CELL_DEG) if n_residues else ("pc_cells", None)
    return Coverage(metric, float(visited.sum()), width)
