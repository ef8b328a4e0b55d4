"""Numbers drawn from the trajectories of a run: dihedrals, positions, RMSD and embeddings of the frames on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from campaign.trace import Run
from campaign.trajectories import each_trajectory, read_boxes, read_positions, trajectory_files
from tasks.errors import BadInput
from tasks.features import dihedrals_deg, rmsd_nm
from tasks.periodic import make_whole
from tasks.selection import MIN_FEATURES

if TYPE_CHECKING:
    from tasks.models import Model
    from tasks.reference import ReferenceSet


@dataclass(frozen=True, slots=True)
class Description:
    """What frames are described by.

    Attributes
    ----------
    kind
        ``phi-psi``: its columns are pairs of these; ``positions``, ``rmsd`` or ``embedding``.
    names
        Of the columns, as axes show them: with their units.
    of
        Takes frames (n_frames, n_stored, 3) in nm and their box vectors (n_frames, 3, 3) in nm, or None for these
        where ``needs_boxes`` is not set; gives (n_frames, n_columns).
    """

    kind: Literal["phi-psi", "positions", "rmsd", "embedding"]
    names: tuple[str, ...]
    of: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    needs_boxes: bool = False


def describe(run: Run) -> Description:
    """Return what a person would plot of the frames of a run.

    Phi and psi (degrees) of each residue that has both, in turn, where trajectories have their atoms; of a system of
    so few points that it has no shape their coordinates (nm); of others the RMSD to the prepared structure (nm).

    Raises
    ------
    BadInput
        When trajectories lack atoms that this needs.
    """
    system = run.system
    if _has_torsions(run):
        torsions = _stored(run, np.stack([system.phi_indices, system.psi_indices], 1).reshape(-1, 4))
        residues = range(1, len(system.phi_indices) + 1)
        several = len(system.phi_indices) > 1
        labels = [f"{angle}{f' {number}' if several else ''} (degrees)" for number in residues for angle in "φψ"]
        return Description("phi-psi", tuple(labels), lambda frames, _: dihedrals_deg(frames, torsions))
    points = _stored(run, system.feature_indices)
    if len(points) < MIN_FEATURES:
        axes = [f"{axis}{f' of atom {atom}' if len(points) > 1 else ''} (nm)" for atom in points for axis in "xyz"]
        return Description("positions", tuple(axes), lambda frames, _: frames[:, points].reshape(len(frames), -1))
    start = system.positions[system.feature_indices]
    return _of_whole(run, "rmsd", ("RMSD to the start (nm)",), lambda points: rmsd_nm(points, start)[:, None])


def describe_for_states(run: Run) -> Description:
    """Return what tells states apart: sines and cosines of phi and psi, coordinates, or else the embedding.

    The embedding is that of the newest model, or of principal components where none was trained.

    Raises
    ------
    BadInput
        When trajectories lack atoms that this needs, or nothing was learned yet.
    """
    shown = describe(run)
    if shown.kind == "phi-psi":
        names = [
            f"{function} {name.removesuffix(' (degrees)')}" for function in ("cos", "sin") for name in shown.names
        ]
        return Description("phi-psi", tuple(names), lambda frames, boxes: _on_circle(shown.of(frames, boxes)))
    if shown.kind == "positions":
        return shown
    model = newest_model(run)
    return _of_whole(run, "embedding", tuple(f"z{k} of the embedding" for k in range(model.latent)), model.embed)


def table(run: Run, description: Description, segments: Iterable[int]) -> pd.DataFrame:
    """Return frames of segments in numbers, indexed by ``segment_id`` and ``frame`` (from 0).

    Segments whose trajectory is elsewhere or damaged are left out; how many is in ``attrs["left_out"]``.
    """
    parts: list[np.ndarray] = []
    ids: list[tuple[int, int]] = []
    segments = [int(segment_id) for segment_id in segments]
    for segment_id, path in each_trajectory(trajectory_files(run.path, segments)):
        try:
            frames = read_positions(path)
            boxes = read_boxes(path) if description.needs_boxes else None
        except BadInput:
            continue
        parts.append(description.of(frames, boxes))
        ids += [(segment_id, frame) for frame in range(len(frames))]
    values = np.concatenate(parts) if parts else np.empty((0, len(description.names)))
    index = pd.MultiIndex.from_tuples(ids, names=["segment_id", "frame"]) if ids else _no_rows()
    found = pd.DataFrame(values, columns=list(description.names), index=index).sort_index()
    found.attrs["left_out"] = len(segments) - len(parts)
    return found


def spread(ids: Iterable[int], at_most: int) -> list[int]:
    """Return at most so many of them, evenly spread over all."""
    every = list(ids)
    if len(every) <= at_most:
        return every
    return [every[row] for row in np.linspace(0, len(every) - 1, at_most).round().astype(int)]


def newest_model(run: Run) -> Model:
    """Return the newest model that was kept, or the principal components of the first frames.

    Raises
    ------
    BadInput
        When there is neither.
    """
    from tasks.models import load_model

    files = sorted(run.path.glob("models/model-*"))
    if files:
        return load_model(files[-1].read_bytes())
    if run.reference is None or not len(run.reference.pca):
        raise BadInput(f"{run.path} has no model yet: look again once there was an inference")
    return load_model(run.reference.pca.tobytes())


def latent(reference: ReferenceSet) -> np.ndarray:
    """Return the embedding of a reference set's sample (n_frames, n_dimensions).

    Where no model embeds (a policy that measures no novelty), these are the first two principal components.
    """
    from tasks.models import load_model

    if reference.sample.latent.shape[1]:
        return reference.sample.latent
    return load_model(reference.pca.tobytes()).embed(reference.sample.points)[:, :2]


def plane(latent: np.ndarray) -> tuple[np.ndarray, float]:
    """Return points in the plane of their first two principal components, and the share of variance in it.

    Returns
    -------
    ndarray of shape (n_points, 2), float64
        The second is zero where there is one dimension only.
    """
    centred = latent - latent.mean(axis=0, dtype=np.float64)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2
    shown = np.zeros((len(latent), 2))
    shown[:, : len(directions[:2])] = centred @ directions[:2].T
    return shown, float(variances[:2].sum() / variances.sum()) if variances.any() else 1.0


def _has_torsions(run: Run) -> bool:
    """Return whether residues have phi and psi, and trajectories the atoms of all."""
    system = run.system
    atoms = np.concatenate([system.phi_indices.ravel(), system.psi_indices.ravel()])
    return len(atoms) > 0 and not len(np.setdiff1d(atoms, system.stored_indices))


def _stored(run: Run, atoms: np.ndarray) -> np.ndarray:
    """Return where trajectories have these atoms."""
    stored = run.system.stored_indices
    missing = np.setdiff1d(atoms, stored)
    if len(missing):
        raise BadInput(
            f"trajectories of {run.path} lack {len(missing)} of the atoms that are asked for, the first of them "
            f"number {missing[0]}: begin campaigns with a --store that has them"
        )
    order = np.argsort(stored)
    return np.asarray(order[np.searchsorted(stored, atoms, sorter=order)])


def _of_whole(
    run: Run, kind: Literal["rmsd", "embedding"], names: tuple[str, ...], of: Callable[[np.ndarray], np.ndarray]
) -> Description:
    """Return a description of the points that the model sees, put together where molecules may cross a box."""
    points, tree = _stored(run, run.system.feature_indices), run.system.feature_tree

    def whole(frames: np.ndarray, boxes: np.ndarray | None) -> np.ndarray:
        found = frames[:, points]
        return of(found if boxes is None or tree is None else make_whole(found, boxes, tree))

    return Description(kind, names, whole, needs_boxes=tree is not None)


def _on_circle(angles_deg: np.ndarray) -> np.ndarray:
    angles = np.radians(angles_deg)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def _no_rows() -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([[], []], names=["segment_id", "frame"])
