"""Look at batches of frames of segments that still run: embed them, and tell how novel they are.

Nothing is remembered of them; the frames of a segment are looked at once more when it has ended (`tasks.infer`), and
only then can another start at one of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from tasks.messages import GlanceResult, GlanceSpec, Ref
from tasks.models import Model, load_model
from tasks.novelty import novelty
from tasks.reference import ReferenceSet
from tasks.transport import fetch
from tasks.warm import kept, warm_model


@dataclass(frozen=True, slots=True)
class Known:
    """Frames that were looked at before.

    Attributes
    ----------
    latent : ndarray of shape (n, latent), float32
        Their embedding.
    sampled : ndarray of shape (n,), bool
        Whether they are of the sample, which is uniform over all frames seen.
    """

    latent: np.ndarray
    sampled: np.ndarray


_known: dict[tuple[str, ...], tuple[Known, Model]] = {}


def glance(spec: GlanceSpec) -> GlanceResult:
    """Return how novel batches are, by one model version."""
    began = time.perf_counter()
    batches = [fetch(batch.points)["points"] for batch in spec.batches]
    known, model = _warm_known(spec)
    fetched = time.perf_counter()
    latent = model.embed(np.concatenate(batches))
    rng = np.random.default_rng([spec.seed, spec.task_id])
    scores = novelty(np.concatenate([latent, known.latent]), spec.neighbours, spec.novelty, rng)
    ordinary = np.sort(scores[len(latent) :][known.sampled])
    bounds = np.cumsum([len(batch) for batch in batches])[:-1]
    parts = np.split(scores[: len(latent)], bounds)
    done = time.perf_counter()
    return GlanceResult(
        task_id=spec.task_id,
        attempt=spec.attempt,
        model_version=spec.model_version,
        rarity=tuple(float(np.searchsorted(ordinary, part.max()) / max(1, len(ordinary))) for part in parts),
        novelty=tuple(float(part.mean()) for part in parts),
        n_frames=len(latent),
        embedded=time.time(),
        seconds={"fetch": fetched - began, "embed": done - fetched},
    )


def _warm_known(spec: GlanceSpec) -> tuple[Known, Model]:
    """Return what is known, and the model that embeds by; read once by each worker."""
    if spec.reference.data is not None:
        return _read_known(spec)
    key = (spec.reference.store.name, *spec.reference.key, str(spec.model_version))
    return kept(_known, key, lambda: _read_known(spec))


def _read_known(spec: GlanceSpec) -> tuple[Known, Model]:
    reference = ReferenceSet.from_arrays(fetch(spec.reference))
    model = _model(spec.model, reference)
    reference = reference.embedded_by(model, spec.model_version)
    sample, frontier = reference.sample, reference.frontier
    # A frame may be in both: counted twice, it would be its own neighbour.
    ids = np.concatenate([frontier.ids, sample.ids])
    _, first, inverse = np.unique(ids, axis=0, return_index=True, return_inverse=True)
    sampled = np.zeros(len(first), dtype=bool)
    sampled[inverse.reshape(-1)[len(frontier) :]] = True
    return Known(np.concatenate([frontier.latent, sample.latent])[first], sampled), model


def _model(model: Ref | None, reference: ReferenceSet) -> Model:
    return load_model(reference.pca.tobytes()) if model is None else warm_model(model)
