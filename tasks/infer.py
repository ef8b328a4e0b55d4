"""Look at new frames: embed them with one model version, score them, and offer starts.

The cost of an inference depends on the new frames and on the bounds of the reference set, not on the length of the
campaign.
"""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tasks.features import coverage, empty_cells, pc_cells, phi_psi_cells
from tasks.files import write_atomically
from tasks.messages import EmbedResult, EmbedSpec, FileRecord
from tasks.models import Model, fit_pca, load_model
from tasks.novelty import novelty
from tasks.periodic import make_whole
from tasks.reference import ReferenceSet, Sample, reservoir
from tasks.transport import fetch, ship

_KEPT = 4


@dataclass(frozen=True, slots=True)
class Indices:
    """Which atoms inference looks at; the arrays of `tasks.systems.PreparedSystem` of the same names."""

    features: np.ndarray
    phi: np.ndarray
    psi: np.ndarray
    n_atoms: int
    feature_tree: np.ndarray | None


@dataclass(frozen=True, slots=True)
class NewFrames:
    """The frames of this inference.

    Attributes
    ----------
    positions : ndarray of shape (n, n_atoms, 3), float32
        In nm.
    owner : ndarray of shape (n,), int64
        Row of the batch each belongs to.
    boxes : ndarray of shape (n, 3, 3), float32
        Box vectors in nm; None where the system is not periodic.
    """

    positions: np.ndarray
    sample: Sample
    owner: np.ndarray
    boxes: np.ndarray | None


_indices: OrderedDict[str, Indices] = OrderedDict()
_models: OrderedDict[tuple[str, ...], Model] = OrderedDict()


def embed(spec: EmbedSpec) -> EmbedResult:
    """Return scores of new frames, candidates to start from, and the next reference set."""
    began = time.perf_counter()
    indices = _system_indices(spec)
    frames = [fetch(ref) for _, ref in spec.batches]
    before = _reference(spec, indices)
    fetched = time.perf_counter()
    rng = np.random.default_rng([spec.seed, spec.reference_number])
    new = _new_frames(spec, frames, indices)
    before, new = _embedded(spec, before, new)
    scores, frontier_scores = _scores(spec, before, new)
    after = _next_reference(spec, before, new, scores, frontier_scores, indices, rng)
    chosen, chosen_scores = _choose(spec, after, scores, frontier_scores, before, rng)
    embedded = time.perf_counter()
    arrays = after.to_arrays()
    reference_file = _keep(spec, arrays)
    reference_ref = ship(arrays, spec.store, always=False)
    starts = ship(_starts(after, chosen), spec.store) if len(chosen) else None
    shipped = time.perf_counter()
    return EmbedResult(
        task_id=spec.task_id,
        attempt=spec.attempt,
        model_version=spec.model_version,
        reference=reference_ref,
        reference_file=reference_file,
        starts=starts,
        start_ids=tuple((int(segment), int(frame)) for segment, frame in after.frontier.ids[chosen]),
        scores=tuple(float(score) for score in chosen_scores),
        segment_novelty=tuple(float(scores[new.owner == i].mean()) for i in range(len(spec.batches))),
        coverage=coverage(after.visited, len(indices.phi)),
        n_frames=len(new.sample),
        n_reference=len(after.sample),
        seconds={"fetch": fetched - began, "embed": embedded - fetched, "ship": shipped - embedded},
    )


def _system_indices(spec: EmbedSpec) -> Indices:
    if spec.system_id not in _indices:
        arrays = fetch(spec.system)
        _indices[spec.system_id] = Indices(
            arrays["feature_indices"],
            arrays["phi_indices"],
            arrays["psi_indices"],
            len(arrays["positions"]),
            arrays.get("feature_tree"),
        )
        _forget_oldest(_indices)
    return _indices[spec.system_id]


def _reference(spec: EmbedSpec, indices: Indices) -> ReferenceSet:
    if spec.reference is not None:
        return ReferenceSet.from_arrays(fetch(spec.reference))
    latent = 0 if spec.embedding == "none" else spec.latent
    cells = empty_cells(len(indices.phi))
    return ReferenceSet.empty(len(indices.features), indices.n_atoms, latent, cells)


def _new_frames(spec: EmbedSpec, frames: list[dict[str, np.ndarray]], indices: Indices) -> NewFrames:
    positions = [arrays["positions"] for arrays in frames]
    joined = np.concatenate(positions)
    boxes = np.concatenate([arrays["box"] for arrays in frames]) if "box" in frames[0] else None
    owner = np.repeat(np.arange(len(positions)), [len(part) for part in positions])
    ids = np.array(
        [(segment, k) for (segment, _), part in zip(spec.batches, positions, strict=True) for k in range(len(part))],
        dtype=np.int64,
    )
    points = joined[:, indices.features]
    if boxes is not None and indices.feature_tree is not None:
        # Or a molecule that leaves the box would seem to change its shape.
        points = make_whole(points, boxes, indices.feature_tree)
    return NewFrames(joined, Sample(ids, points, np.empty((len(ids), 0), np.float32)), owner, boxes)


def _embedded(spec: EmbedSpec, before: ReferenceSet, new: NewFrames) -> tuple[ReferenceSet, NewFrames]:
    """Return both with embeddings of this model version; what is older is embedded anew, so versions never mix."""
    if not len(before.pca):
        packed = np.frombuffer(fit_pca(new.sample.points, spec.latent).to_bytes(), dtype=np.uint8)
        before = replace(before, pca=packed)
    if spec.embedding == "none":
        return before, new
    model = _model(spec, before)
    if before.model_version != spec.model_version or before.sample.latent.shape[1] != model.latent:
        before = before.with_latent(
            spec.model_version, model.embed(before.sample.points), model.embed(before.frontier.points)
        )
    return before, replace(new, sample=replace(new.sample, latent=model.embed(new.sample.points)))


def _model(spec: EmbedSpec, before: ReferenceSet) -> Model:
    if spec.model is None:
        return load_model(before.pca.tobytes())
    key = (spec.model.store.name, *spec.model.key)
    if spec.model.data is not None or key not in _models:
        _models[key] = load_model(fetch(spec.model)["model"].tobytes())
        _forget_oldest(_models)
    return _models[key]


def _scores(spec: EmbedSpec, before: ReferenceSet, new: NewFrames) -> tuple[np.ndarray, np.ndarray]:
    """Return the novelty of the new frames and of the frontier among all known frames."""
    if spec.embedding == "none":
        return np.zeros(len(new.sample)), np.zeros(len(before.frontier))
    known = new.sample.append(before.frontier).append(before.sample)
    # A frame of the frontier may be in the sample too: count it once, or it would be its own neighbour.
    _, first = np.unique(known.ids, axis=0, return_index=True)
    first.sort()
    scores = novelty(known.latent[first], spec.neighbours, spec.novelty)
    n_new, n_candidates = len(new.sample), len(new.sample) + len(before.frontier)
    return scores[:n_new], scores[n_new:n_candidates]


def _next_reference(
    spec: EmbedSpec,
    before: ReferenceSet,
    new: NewFrames,
    scores: np.ndarray,
    frontier_scores: np.ndarray,
    indices: Indices,
    rng: np.random.Generator,
) -> ReferenceSet:
    kept = reservoir(len(before.sample), before.n_seen, len(new.sample), spec.max_reference, rng)
    frontier = before.frontier.append(new.sample)
    whole = np.concatenate([before.frontier_positions, new.positions])
    rows = _frontier_rows(spec, before, len(new.sample), np.concatenate([frontier_scores, scores]), rng)
    return ReferenceSet(
        number=spec.reference_number,
        model_version=spec.model_version,
        n_seen=before.n_seen + len(new.sample),
        sample=before.sample.append(new.sample).take(kept),
        frontier=frontier.take(rows),
        frontier_positions=whole[rows],
        visited=_visit(before, new, indices),
        pca=before.pca,
        frontier_boxes=_frontier_boxes(before, new, rows),
    )


def _frontier_boxes(before: ReferenceSet, new: NewFrames, rows: np.ndarray) -> np.ndarray | None:
    if new.boxes is None:
        return None
    older = [] if before.frontier_boxes is None else [before.frontier_boxes]
    return np.asarray(np.concatenate([*older, new.boxes])[rows])


def _starts(after: ReferenceSet, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return frames of the frontier as segments start from them."""
    starts = {"positions": after.frontier_positions[chosen]}
    return starts if after.frontier_boxes is None else {**starts, "box": after.frontier_boxes[chosen]}


def _frontier_rows(
    spec: EmbedSpec, before: ReferenceSet, n_new: int, scores: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return rows of (old frontier, then new frames) to keep whole: the newest, or a uniform sample of all frames."""
    if spec.candidates == "none":
        return np.empty(0, np.int64)
    if spec.candidates == "uniform":
        return reservoir(len(before.frontier), before.n_seen, n_new, spec.max_frontier, rng)
    return np.argsort(-scores, kind="stable")[: spec.max_frontier]


def _choose(
    spec: EmbedSpec,
    after: ReferenceSet,
    scores: np.ndarray,
    frontier_scores: np.ndarray,
    before: ReferenceSet,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the frontier to offer as starts, and their scores."""
    n_offered = min(spec.n_candidates, len(after.frontier))
    if spec.candidates == "novel":
        best = np.sort(np.concatenate([frontier_scores, scores]))[::-1]
        return np.arange(n_offered), best[:n_offered]
    return rng.permutation(len(after.frontier))[:n_offered], np.zeros(n_offered)


def _visit(before: ReferenceSet, new: NewFrames, indices: Indices) -> np.ndarray:
    if len(indices.phi):
        cells = phi_psi_cells(new.positions, indices.phi, indices.psi)
    else:
        cells = pc_cells(load_model(before.pca.tobytes()).embed(new.sample.points))
    visited = before.visited.copy()
    visited[cells] = True
    return visited


def _keep(spec: EmbedSpec, arrays: dict[str, np.ndarray]) -> FileRecord | None:
    if spec.run_dir is None:
        return None
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    name = f"models/reference-{spec.reference_number:06d}.npz"
    return write_atomically(Path(spec.run_dir), name, buffer.getvalue())


def _forget_oldest(cache: OrderedDict[str, Indices] | OrderedDict[tuple[str, ...], Model]) -> None:
    while len(cache) > _KEPT:
        cache.popitem(last=False)
