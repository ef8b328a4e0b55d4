"""Progress coordinates of frames and basis states, all of a task by one model version."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from tasks.coordinate import checked, pack_pcoord, values
from tasks.errors import BadInput
from tasks.indices import Indices
from tasks.messages import CoordinateResult, CoordinateSpec
from tasks.models import Model
from tasks.transport import fetch
from tasks.warm import warm_indices, warm_model


def embed_coordinate(spec: CoordinateSpec) -> CoordinateResult:
    """Return the progress coordinate of every frame and basis state of a task.

    Raises
    ------
    BadInput
        When the model was made for other points, or has too few dimensions.
    CoordinateFailed
        When a value is not finite, or the user's function fails.
    """
    began = time.perf_counter()
    indices = warm_indices(spec.system, spec.system_id)
    batches = [fetch(ref) for _, ref in spec.batches]
    if spec.basis is not None:
        chosen = np.array(spec.basis_rows, dtype=np.int64)
        batches.append({name: array[chosen] for name, array in fetch(spec.basis).items()})
    fetched = time.perf_counter()
    parts = _learned(spec, batches, indices) if spec.coordinate.learned else _unlearned(spec, batches, indices)
    embedded = time.perf_counter()
    segments = [segment_id for segment_id, _ in spec.batches]
    return CoordinateResult(
        task_id=spec.task_id,
        attempt=spec.attempt,
        model_version=spec.model_version,
        pcoord=tuple(zip(segments, map(pack_pcoord, parts), strict=False)),
        basis=b"" if spec.basis is None else pack_pcoord(parts[-1]),
        n_frames=sum(map(len, parts)),
        seconds={"fetch": fetched - began, "embed": embedded - fetched},
    )


def project(model: Model, points: np.ndarray, dimensions: tuple[int, ...]) -> np.ndarray:
    """Return some dimensions of the embedding.

    Parameters
    ----------
    points : ndarray of shape (n_frames, n_points, 3), float32
        In nm, whole.

    Returns
    -------
    ndarray of shape (n_frames, n_dimensions), float32

    Raises
    ------
    BadInput
        When the model was made for other points, or has too few dimensions.
    """
    if points.shape[1] != model.alignment.n_points:
        raise BadInput(
            f"model weights are for {model.alignment.n_points} points, and {points.shape[1]} atoms are seen here: "
            "choose those that it was trained on by --features, or give other weights"
        )
    if max(dimensions) >= model.latent:
        raise BadInput(
            f"dimension {max(dimensions)} is asked of model weights whose {model.latent} dimensions count from 0: "
            "choose lower ones by --pcoord, or give other weights"
        )
    return np.asarray(model.embed(points)[:, list(dimensions)])


def _learned(spec: CoordinateSpec, batches: list[dict[str, np.ndarray]], indices: Indices) -> list[np.ndarray]:
    assert spec.model is not None  # a learned coordinate is one of a model
    points = [_points(arrays, indices) for arrays in batches]
    model = warm_model(spec.model)
    rows = checked(spec.coordinate, project(model, np.concatenate(points), spec.coordinate.latent))
    return np.split(rows, np.cumsum([len(part) for part in points])[:-1])


def _points(arrays: Mapping[str, np.ndarray], indices: Indices) -> np.ndarray:
    """Return what the model sees of a batch, the start first where it is there."""
    points = indices.points(arrays["positions"].astype(np.float32), _boxes(arrays, indices))
    return np.concatenate([arrays["start"], points]) if "start" in arrays else points


def _unlearned(spec: CoordinateSpec, batches: list[dict[str, np.ndarray]], indices: Indices) -> list[np.ndarray]:
    return [
        values(spec.coordinate, arrays["positions"].astype(np.float32), _boxes(arrays, indices), indices)
        for arrays in batches
    ]


def _boxes(arrays: Mapping[str, np.ndarray], indices: Indices) -> np.ndarray | None:
    """Return the box of each frame, the system's own where it has none with it; None without any."""
    if "box" in arrays:
        return arrays["box"].astype(np.float32)
    if indices.box is None:
        return None
    return np.broadcast_to(indices.box.astype(np.float32), (len(arrays["positions"]), 3, 3))
