"""What of a campaign's frames a report shows: a sample, with embeddings, torsions, and coordinates to look at."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from campaign.report import MOST_SEGMENTS, room
from campaign.trace import Run
from campaign.trajectories import each_trajectory, trajectory_files
from tasks.errors import BadInput
from tasks.features import dihedrals_deg, rmsd_nm
from tasks.models import align, load_model
from tasks.prepared import PreparedSystem
from tasks.reference import ReferenceSet
from tasks.selection import MIN_FEATURES

# An archive is unpacked whole, so few of them are.
_MOST_ARCHIVES = 16

# Coordinates are kept as whole numbers of 0.001 nm, as far as 16 bits reach.
_PER_NM = 1000.0
_FARTHEST_NM = 32.7


@dataclass(frozen=True, slots=True)
class Sampled:
    """Frames that are shown, and what is known of each.

    Attributes
    ----------
    frames
        A row for each: ``segment_id``, ``frame``, ``x``, ``y`` (of its embedding; NaN without one), and ``value``,
        what the second panel shows where there are no torsions.
    axes
        What ``x`` and ``y`` are; empty where nothing was embedded.
    model_version
        Of the embedding; 0 for pretrained weights or principal components.
    phi, psi : ndarray of shape (n_frames, n_residues), float64
        Degrees; no columns where no residue has both.
    value_name
        What ``value`` is, with its unit.
    coordinates
        For the page: frames of some segments, aligned to the start, as text.
    n_embedded
        Frames that the embedding was drawn from.
    """

    frames: pd.DataFrame
    axes: tuple[str, ...] = ()
    model_version: int = 0
    phi: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    psi: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    value_name: str = ""
    coordinates: tuple[dict[str, Any], ...] = ()
    n_embedded: int = 0


def sample(run: Run, extra: np.ndarray, rng: np.random.Generator) -> Sampled:
    """Return frames to show.

    Those that the newest reference set keeps, a uniform sample of all frames that were embedded; where there is none,
    the last frames of segments drawn at random.

    Parameters
    ----------
    extra : ndarray of int64
        Segments whose frames are wanted as well, as far as there is room.
    """
    try:
        system, reference = run.system, run.reference
    except BadInput:
        return Sampled(_no_frames())
    n_segments, n_frames = room(len(system.stored_indices))
    points, axes = _points(run, reference, rng)
    files = _reachable(run.path, points, extra, n_segments, rng)
    points = points[points.segment_id.isin(files.keys())].reset_index(drop=True)
    positions, shown = _read(files, points, system, max(1, n_frames * n_segments // max(1, len(files))))
    points, stored = _those_read(points, positions)
    return Sampled(
        points.assign(value=_value(stored, system)),
        axes,
        0 if reference is None else reference.model_version,
        *_torsions(stored, system),
        value_name=_value_name(system),
        coordinates=shown,
        n_embedded=0 if reference is None or not axes else len(reference.sample),
    )


def _no_frames() -> pd.DataFrame:
    columns = {"segment_id": "int64", "frame": "int64", "x": float, "y": float, "value": float}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def _points(
    run: Run, reference: ReferenceSet | None, rng: np.random.Generator
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return frames to show with the first two dimensions of their embedding, and what these are."""
    if reference is not None and len(reference.sample):
        latent, axes = _plane(reference)
        ids = reference.sample.ids
        return pd.DataFrame({"segment_id": ids[:, 0], "frame": ids[:, 1], "x": latent[:, 0], "y": latent[:, 1]}), axes
    segments = run.segments
    chosen = np.sort(rng.permutation(len(segments))[:MOST_SEGMENTS])
    ids, last = segments.index.to_numpy()[chosen], segments.n_frames.to_numpy()[chosen] - 1
    kept = last >= 0
    return pd.DataFrame({"segment_id": ids[kept], "frame": last[kept], "x": np.nan, "y": np.nan}), ()


def _plane(reference: ReferenceSet) -> tuple[np.ndarray, tuple[str, ...]]:
    latent = reference.sample.latent
    if latent.shape[1] == 0:
        if not len(reference.pca):
            return np.full((len(reference.sample), 2), np.nan), ()
        latent = load_model(reference.pca.tobytes()).embed(reference.sample.points)
        names = "first", "second"
        axes = tuple(f"{name} component of the structure" for name in names)
        return _two_columns(latent), axes
    if latent.shape[1] <= 2:
        return _two_columns(latent), ("first dimension of the embedding", "second dimension of the embedding")
    centred = latent - latent.mean(axis=0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    axes = tuple(f"{name} component of the embedding" for name in ("first", "second"))
    return centred @ components[:2].T, axes


def _two_columns(latent: np.ndarray) -> np.ndarray:
    plane = np.zeros((len(latent), 2))
    plane[:, : min(2, latent.shape[1])] = latent[:, :2]
    return plane


def _reachable(
    run: Path, points: pd.DataFrame, extra: np.ndarray, n_segments: int, rng: np.random.Generator
) -> dict[int, tuple[Path, str | None]]:
    """Return the trajectories to read: of the points' segments first, then of further ones, up to a number."""
    wanted = points.segment_id.unique()
    ranked = [*rng.permutation(wanted), *np.setdiff1d(extra, wanted)]
    files = trajectory_files(run, [int(number) for number in ranked])
    archives = sorted({str(file) for file, name in files.values() if name is not None})
    opened = set(rng.permutation(archives)[:_MOST_ARCHIVES]) if archives else set()
    usable = [int(number) for number in ranked if int(number) in files]
    usable = [number for number in usable if files[number][1] is None or str(files[number][0]) in opened]
    return {number: files[number] for number in usable[:n_segments]}


def _read(
    files: dict[int, tuple[Path, str | None]], points: pd.DataFrame, system: PreparedSystem, n_frames: int
) -> tuple[dict[tuple[int, int], np.ndarray], tuple[dict[str, Any], ...]]:
    """Return the frames of the points by segment and frame, and what the page shows of each trajectory."""
    start = system.positions[system.stored_indices].astype(np.float32)
    asked = points.groupby("segment_id").frame.agg(list).to_dict()
    found: dict[tuple[int, int], np.ndarray] = {}
    shown = []
    for segment, frames in each_trajectory(files):
        if frames.shape[1:] != start.shape or not len(frames):
            continue
        of_points = [frame for frame in asked.get(segment, ()) if frame < len(frames)]
        found.update({(segment, frame): frames[frame] for frame in of_points})
        evenly = np.linspace(0, len(frames) - 1, min(n_frames, len(frames))).round().astype(int)
        kept = np.unique([*evenly, *of_points, len(frames) - 1]).astype(int)
        shown.append({"s": segment, "f": kept.tolist(), "x": _packed(_laid(frames[kept], start))})
    return found, tuple(shown)


def _laid(frames: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return frames laid on the start, so that what moves from one to the next is the molecule."""
    if len(start) < MIN_FEATURES:
        return np.asarray(frames - start.mean(axis=0))
    return align(frames, start)


def _packed(frames: np.ndarray) -> str:
    whole = np.round(np.clip(frames, -_FARTHEST_NM, _FARTHEST_NM) * _PER_NM).astype("<i2")
    return base64.b64encode(whole.tobytes()).decode()


def _those_read(
    points: pd.DataFrame, positions: dict[tuple[int, int], np.ndarray]
) -> tuple[pd.DataFrame, np.ndarray]:
    keys = list(zip(points.segment_id, points.frame, strict=True))
    there = [key in positions for key in keys]
    frames = [positions[key] for key in keys if key in positions]
    return points[there].reset_index(drop=True), np.array(frames, dtype=np.float32)


def _within(indices: np.ndarray, system: PreparedSystem) -> np.ndarray:
    """Return atoms by their numbers in trajectories; rows of which one is not kept are left out."""
    place = {int(atom): row for row, atom in enumerate(system.stored_indices)}
    rows = indices if indices.ndim == 2 else indices[:, None]
    return np.array([[place[int(a)] for a in row] for row in rows if all(int(a) in place for a in row)], np.int64)


def _torsions(frames: np.ndarray, system: PreparedSystem) -> tuple[np.ndarray, np.ndarray]:
    phi, psi = _within(system.phi_indices, system), _within(system.psi_indices, system)
    if not len(frames) or not len(phi) or len(phi) != len(psi):
        return np.empty((len(frames), 0)), np.empty((len(frames), 0))
    return dihedrals_deg(frames, phi), dihedrals_deg(frames, psi)


def _value(frames: np.ndarray, system: PreparedSystem) -> np.ndarray:
    """Return how far each frame is from the start, or where it is where there is no shape."""
    seen = _within(system.feature_indices, system).ravel()
    if not len(frames) or not len(seen):
        return np.full(len(frames), np.nan)
    if len(seen) < MIN_FEATURES:
        return np.asarray(frames[:, seen[0], 0], dtype=np.float64)
    return rmsd_nm(frames[:, seen], system.positions[system.stored_indices][seen])


def _value_name(system: PreparedSystem) -> str:
    return "x (nm)" if len(system.feature_indices) < MIN_FEATURES else "RMSD to the start (nm)"
