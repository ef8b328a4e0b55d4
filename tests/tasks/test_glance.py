"""What a glance says of batches, against the same worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from tasks import glance as glances
from tasks.glance import glance
from tasks.messages import Batch, GlanceSpec, StoreSpec
from tasks.models import fit_pca, load_model
from tasks.reference import ReferenceSet, Sample
from tasks.transport import evict, ship

K = 3
N_POINTS = 5


def points(rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    return rng.normal(scale=spread, size=(n, N_POINTS, 3)).astype(np.float32)


@pytest.fixture
def reference() -> ReferenceSet:
    """Forty frames seen; of these five are the frontier, two of which are in the sample as well."""
    rng = np.random.default_rng(1)
    seen = points(rng, 40, 1.0)
    ids = np.column_stack([np.full(40, 3), np.arange(40)])
    model = fit_pca(seen, 2)
    latent = model.embed(seen)
    sample = Sample(ids[:30], seen[:30], latent[:30])
    frontier = Sample(ids[28:33], seen[28:33], latent[28:33])
    return ReferenceSet(
        number=4,
        model_version=2,
        n_seen=40,
        sample=sample,
        frontier=frontier,
        frontier_positions=np.zeros((5, 9, 3), np.float32),
        visited=np.zeros(1, bool),
        pca=np.frombuffer(model.to_bytes(), np.uint8),
    )


def spec_of(reference: ReferenceSet, batches: list[np.ndarray], store: StoreSpec, **changes) -> GlanceSpec:
    told = tuple(
        Batch(10 + k, 1, 10 + k, 0, 0, len(each), 0.0, ship({"points": each}, store))
        for k, each in enumerate(batches)
    )
    spec = GlanceSpec(5, 1, told, ship(reference.to_arrays(), store), 4, None, 2, "sparsity", K, 1, store)
    return replace(spec, **changes)


@pytest.fixture
def store(tmp_path) -> StoreSpec:
    return StoreSpec(f"glance-{tmp_path.name}", "file", (("store_dir", str(tmp_path)),))


def test_rarity_is_the_share_of_the_sample_that_is_less_novel(reference, store):
    rng = np.random.default_rng(2)
    dull, far = points(rng, 4, 0.1), points(rng, 3, 6.0)
    result = glance(spec_of(reference, [dull, far], store))
    model = load_model(reference.pca.tobytes())
    # The frontier's five and the sample's others: 33 frames that are known, each once.
    known = np.concatenate([reference.sample.latent, reference.frontier.latent[2:]])
    every = np.concatenate([model.embed(np.concatenate([dull, far])), known])
    distance, _ = NearestNeighbors(n_neighbors=K).fit(every).kneighbors()
    scores = distance[:, -1]
    sample = scores[7:37]
    expected = [np.mean(sample < scores[:4].max()), np.mean(sample < scores[4:7].max())]
    assert result.rarity == pytest.approx(expected)
    assert result.novelty == pytest.approx([scores[:4].mean(), scores[4:7].mean()], rel=1e-5)
    assert result.rarity[0] < 0.7
    assert result.rarity[1] == 1.0
    assert (result.n_frames, result.model_version) == (7, 2)


def test_what_is_known_is_embedded_by_the_version_that_is_asked_for(reference, store):
    rng = np.random.default_rng(3)
    batch = points(rng, 4, 1.0)
    other = fit_pca(points(rng, 50, 2.0), 2)
    model = ship({"model": np.frombuffer(other.to_bytes(), np.uint8)}, store)
    asked = spec_of(reference, [batch], store, model=model, model_version=3)
    anew = replace(
        reference,
        model_version=3,
        sample=replace(reference.sample, latent=other.embed(reference.sample.points)),
        frontier=replace(reference.frontier, latent=other.embed(reference.frontier.points)),
    )
    known = spec_of(anew, [batch], store, model=model, model_version=3)
    assert glance(asked).rarity == glance(known).rarity
    assert glance(asked).novelty != glance(spec_of(reference, [batch], store)).novelty


def test_a_worker_reads_what_is_known_once(reference, store, monkeypatch):
    spec = spec_of(reference, [points(np.random.default_rng(4), 2, 1.0)], store)
    first = glance(spec)
    evict(spec.reference)
    assert glance(spec).rarity == first.rarity
    for number in range(10):
        glance(spec_of(replace(reference, number=number), [points(np.random.default_rng(4), 2, 1.0)], store))
    assert len(glances._known) <= 4
