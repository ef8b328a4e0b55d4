"""What of a campaign's frames a report shows: a sample, with embeddings, torsions, and coordinates to look at."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from campaign import geometry
from campaign.report import MOST_SEGMENTS, room
from campaign.trace import Run
from campaign.trajectories import each_trajectory, read_boxes, read_positions, trajectory_files
from tasks.errors import BadInput
from tasks.models import align
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
        A row for each: ``segment_id``, ``frame``, ``x``, ``y`` (of its embedding; NaN without one).
    axes
        What ``x`` and ``y`` are; empty where nothing was embedded.
    model_version
        Of the embedding; 0 for pretrained weights or principal components.
    description
        What else they are described by; None where trajectories lack the atoms for that.
    values : ndarray of shape (n_frames, n_columns), float64
        These.
    coordinates
        For the page: frames of some segments, aligned to the start, as text.
    n_embedded
        Frames that the embedding was drawn from.
    """

    frames: pd.DataFrame
    axes: tuple[str, ...] = ()
    model_version: int = 0
    description: geometry.Description | None = None
    values: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
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
    try:
        description = geometry.describe(run)
    except BadInput:
        description = None  # trajectories lack the atoms
    n_segments, n_frames = room(len(system.stored_indices))
    points, axes = _points(run, reference, rng)
    files = _reachable(run.path, points, extra, n_segments, rng)
    spare = max(1, n_frames * n_segments // max(1, len(files)))
    values, shown = _read(files, points, system, description, spare)
    points = points[[key in values for key in zip(points.segment_id, points.frame, strict=True)]]
    keys = zip(points.segment_id, points.frame, strict=True)
    return Sampled(
        points.reset_index(drop=True),
        axes,
        0 if reference is None else reference.model_version,
        description,
        np.array([values[key] for key in keys]),
        coordinates=shown,
        n_embedded=0 if reference is None or not axes else len(reference.sample),
    )


def _no_frames() -> pd.DataFrame:
    columns = {"segment_id": "int64", "frame": "int64", "x": float, "y": float}
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
    """Return the embedding in two dimensions, and what these are; where nothing embeds, there are none."""
    if not reference.sample.latent.shape[1] and not len(reference.pca):
        return np.full((len(reference.sample), 2), np.nan), ()
    latent = geometry.latent(reference)
    shown = latent if latent.shape[1] == 2 else geometry.plane(latent)[0]
    what = "component of the embedding" if shown is not latent else "dimension of the embedding"
    if not reference.sample.latent.shape[1]:
        what = "component of the structure"
    return shown, (f"first {what}", f"second {what}")


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
    files: dict[int, tuple[Path, str | None]],
    points: pd.DataFrame,
    system: PreparedSystem,
    description: geometry.Description | None,
    n_frames: int,
) -> tuple[dict[tuple[int, int], np.ndarray], tuple[dict[str, Any], ...]]:
    """Return what frames are described by, by segment and frame, and what the page shows of each file."""
    start = system.positions[system.stored_indices].astype(np.float32)
    asked = points.groupby("segment_id").frame.agg(list).to_dict()
    found: dict[tuple[int, int], np.ndarray] = {}
    shown = []
    for segment, path in each_trajectory(files):
        try:
            frames = read_positions(path)
            boxes = read_boxes(path) if description is not None and description.needs_boxes else None
        except BadInput:
            continue  # it may be on its way to its place
        if frames.shape[1:] != start.shape or not len(frames):
            continue
        of_points = [frame for frame in asked.get(segment, ()) if frame < len(frames)]
        if of_points:
            nothing = np.empty((len(of_points), 0))
            within = None if boxes is None else boxes[of_points]
            values = nothing if description is None else description.of(frames[of_points], within)
            found.update({(segment, frame): row for frame, row in zip(of_points, values, strict=True)})
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
