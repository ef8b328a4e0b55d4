"""Look at new frames: embed them with one model version, score them, and offer starts.

The cost of an inference depends on the new frames and on the bounds of the reference set, not on the length of the
campaign.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, replace

import numpy as np

from tasks.features import coverage, empty_cells, pc_cells, phi_psi_cells, rmsd_nm
from tasks.files import stage
from tasks.indices import Indices
from tasks.messages import EmbedResult, EmbedSpec, FileRecord, Nearest
from tasks.models import Model, fit_pca, load_model
from tasks.novelty import novelty
from tasks.reference import ReferenceSet, Sample, reservoir
from tasks.transport import fetch, ship
from tasks.warm import warm_indices, warm_model


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


def embed(spec: EmbedSpec) -> EmbedResult:
    """Return scores of new frames, candidates to start from, and the next reference set."""
    began = time.perf_counter()
    indices = warm_indices(spec.system, spec.system_id)
    frames = [fetch(ref) for _, ref in spec.batches]
    before = _reference(spec, indices)
    fetched = time.perf_counter()
    rng = np.random.default_rng([spec.seed, spec.reference_number])
    new = _new_frames(spec, frames, indices)
    before, new = _embedded(spec, before, new)
    scores = _scores(spec, before, new, rng)
    new_scores = scores[len(before.frontier) :]
    rows = _frontier_rows(spec, before, scores, rng)
    after = _next_reference(spec, before, new, rows, indices, rng)
    chosen = _choose(spec, after, indices.target, rng)
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
        scores=tuple(float(score) for score in scores[rows[chosen]]),
        segment_novelty=tuple(float(new_scores[new.owner == i].mean()) for i in range(len(spec.batches))),
        coverage=coverage(after.visited, len(indices.phi)),
        n_frames=len(new.sample),
        n_reference=len(after.sample),
        nearest=after.nearest,
        seconds={"fetch": fetched - began, "embed": embedded - fetched, "ship": shipped - embedded},
    )


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
    points = indices.points(joined, boxes)
    return NewFrames(joined, Sample(ids, points, np.empty((len(ids), 0), np.float32)), owner, boxes)


def _embedded(spec: EmbedSpec, before: ReferenceSet, new: NewFrames) -> tuple[ReferenceSet, NewFrames]:
    """Return both with embeddings of this model version."""
    if not len(before.pca):
        packed = np.frombuffer(fit_pca(new.sample.points, spec.latent).to_bytes(), dtype=np.uint8)
        before = replace(before, pca=packed)
    if spec.embedding == "none":
        return before, new
    model = _model(spec, before)
    before = before.embedded_by(model, spec.model_version)
    return before, replace(new, sample=replace(new.sample, latent=model.embed(new.sample.points)))


def _model(spec: EmbedSpec, before: ReferenceSet) -> Model:
    if spec.model is None:
        return load_model(before.pca.tobytes())
    return warm_model(spec.model)


def _scores(spec: EmbedSpec, before: ReferenceSet, new: NewFrames, rng: np.random.Generator) -> np.ndarray:
    """Return the novelty of (the frontier, then the new frames) among all known frames."""
    if spec.embedding == "none":
        return np.zeros(len(before.frontier) + len(new.sample))
    candidates = before.frontier.append(new.sample)
    known = candidates.append(before.sample)
    # A frame of the frontier may be in the sample too: count it once, or it would be its own neighbour.
    _, first = np.unique(known.ids, axis=0, return_index=True)
    first.sort()
    return novelty(known.latent[first], spec.neighbours, spec.novelty, rng)[: len(candidates)]


def _next_reference(
    spec: EmbedSpec,
    before: ReferenceSet,
    new: NewFrames,
    rows: np.ndarray,
    indices: Indices,
    rng: np.random.Generator,
) -> ReferenceSet:
    """Return what is remembered after these frames; ``rows`` of (old frontier, then new frames) stay whole."""
    kept = reservoir(len(before.sample), before.n_seen, len(new.sample), spec.max_reference, rng)
    frontier = before.frontier.append(new.sample)
    whole = np.concatenate([before.frontier_positions, new.positions])
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
        nearest=None if indices.target is None else _nearest(before.nearest, new.sample, indices.target),
    )


def _nearest(before: Nearest | None, new: Sample, target: np.ndarray) -> Nearest:
    """Return the nearest of what was the nearest so far and the new frames."""
    distances = rmsd_nm(new.points, target)
    row = int(np.argmin(distances))
    if before is not None and before.rmsd_nm <= distances[row]:
        return before
    return Nearest(int(new.ids[row, 0]), int(new.ids[row, 1]), float(distances[row]))


def _frontier_boxes(before: ReferenceSet, new: NewFrames, rows: np.ndarray) -> np.ndarray | None:
    if new.boxes is None:
        return None
    older = [] if before.frontier_boxes is None else [before.frontier_boxes]
    return np.asarray(np.concatenate([*older, new.boxes])[rows])


def _starts(after: ReferenceSet, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return frames of the frontier as segments start from them."""
    starts = {"positions": after.frontier_positions[chosen]}
    return starts if after.frontier_boxes is None else {**starts, "box": after.frontier_boxes[chosen]}


def _frontier_rows(spec: EmbedSpec, before: ReferenceSet, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return rows of (old frontier, then new frames) to keep whole: the newest, or a uniform sample of all frames."""
    if spec.candidates == "none":
        return np.empty(0, np.int64)
    if spec.candidates == "uniform":
        n_kept = len(before.frontier)
        return reservoir(n_kept, before.n_seen, len(scores) - n_kept, spec.max_frontier, rng)
    return np.argsort(-scores, kind="stable")[: spec.max_frontier]


def _choose(spec: EmbedSpec, after: ReferenceSet, target: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Return rows of the frontier to offer as starts, in the order asked for; a novel one is sorted already."""
    if spec.candidates == "novel":
        order = np.arange(len(after.frontier))
    elif spec.candidates == "nearest":
        assert target is not None  # the policy that asks for it names one, and the system was prepared with it
        order = np.argsort(rmsd_nm(after.frontier.points, target), kind="stable")
    else:
        order = rng.permutation(len(after.frontier))
    return order[: spec.n_candidates]


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
    return stage(spec.run_dir, name, buffer.getvalue(), spec.attempt)


if __name__ == "__main__":
    from tasks.pcoord_file import main

    raise SystemExit(main())
