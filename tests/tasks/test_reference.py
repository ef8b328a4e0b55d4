import numpy as np
import pytest
from scipy import stats

from tasks.features import empty_cells
from tasks.models import fit_pca
from tasks.reference import ReferenceSet, Sample, reservoir
from tasks.transport import pack, unpack


def sample(n: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    ids = np.column_stack([np.full(n, seed), np.arange(n)])
    return Sample(ids, *(rng.normal(size=shape).astype(np.float32) for shape in ((n, 10, 3), (n, 4))))


def reference() -> ReferenceSet:
    visited = empty_cells(1)
    visited[::7] = True
    positions = np.random.default_rng(3).normal(size=(5, 22, 3)).astype(np.float32)
    return ReferenceSet(6, 2, 900, sample(30, 1), sample(5, 2), positions, visited, np.arange(40, dtype=np.uint8))


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


# ---- what travels


@pytest.mark.parametrize("of", [reference(), ReferenceSet.empty(10, 22, 4, empty_cells(1))], ids=["full", "empty"])
def test_a_set_survives_transport(of: ReferenceSet) -> None:
    arrived = ReferenceSet.from_arrays(unpack(pack(of.to_arrays())))
    assert (arrived.number, arrived.model_version, arrived.n_seen) == (of.number, of.model_version, of.n_seen)
    assert_equal(arrived.to_arrays(), of.to_arrays())


def test_the_empty_set_takes_frames() -> None:
    empty = ReferenceSet.empty(10, 22, 4, empty_cells(1))
    assert (len(empty.sample), empty.n_seen, empty.number, len(empty.pca)) == (0, 0, 0, 0)
    grown = empty.sample.append(sample(3))
    np.testing.assert_array_equal(grown.points, sample(3).points)


def test_samples_keep_ids_points_and_latent_together() -> None:
    both = sample(4, 1).append(sample(3, 2))
    rows = np.array([6, 0, 4])
    taken = both.take(rows)
    assert len(both) == 7
    assert len(taken) == 3
    assert taken.ids.tolist() == [[2, 2], [1, 0], [2, 0]]
    for name in ("points", "latent"):
        wanted = np.stack(
            [getattr(sample(3, 2), name)[2], getattr(sample(4, 1), name)[0], getattr(sample(3, 2), name)[0]]
        )
        np.testing.assert_array_equal(getattr(taken, name), wanted)


def test_a_new_embedding_replaces_the_old_one_only() -> None:
    old, model = reference(), fit_pca(reference().sample.points, 8)
    new = old.embedded_by(model, 3)
    assert new.model_version == 3
    np.testing.assert_array_equal(new.sample.latent, model.embed(old.sample.points))
    np.testing.assert_array_equal(new.frontier.latent, model.embed(old.frontier.points))
    assert new.embedded_by(model, 3) is new
    assert old.embedded_by(model, old.model_version).sample.latent.shape == (30, 8), "of another size, so of another"
    before, after = old.to_arrays(), new.to_arrays()
    for changed in ("counts", "latent", "frontier_latent"):
        del before[changed], after[changed]
    assert_equal(after, before)


# ---- the reservoir


def kept_after(batches: tuple[int, ...], capacity: int, rng: np.random.Generator) -> np.ndarray:
    """Return which frames are kept after batches of frames numbered in order."""
    kept, n_seen = np.empty(0, np.int64), 0
    for n_new in batches:
        known = np.concatenate([kept, np.arange(n_seen, n_seen + n_new)])
        kept = known[reservoir(len(kept), n_seen, n_new, capacity, rng)]
        n_seen += n_new
    return kept


def test_a_reservoir_that_is_not_full_keeps_all_in_order() -> None:
    assert reservoir(0, 0, 4, 10, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]
    assert reservoir(4, 4, 3, 10, np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert reservoir(4, 4, 0, 10, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]


def test_a_full_reservoir_never_grows_and_holds_no_frame_twice() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        kept = kept_after((7, 1, 30, 2, 15), 9, rng)
        assert len(kept) == len(set(kept.tolist())) == 9
        assert kept.min() >= 0
        assert kept.max() < 55


def test_equal_generators_keep_equal_frames() -> None:
    one, same, other = (kept_after((40, 40), 10, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize("batches", [(60,), (13, 1, 20, 26), (1,) * 60], ids=["at once", "in batches", "one by one"])
def test_every_frame_is_kept_with_equal_chance(batches: tuple[int, ...]) -> None:
    n_draws, n_frames, capacity = 1500, 60, 10
    rng = np.random.default_rng(7)
    draws = np.array([kept_after(batches, capacity, rng) for _ in range(n_draws)])
    counts = np.bincount(draws.ravel(), minlength=n_frames)
    chance = capacity / n_frames
    # Drawn without replacement: the counts vary less than those of Pearson's test, by (1 - chance) n / (n - 1).
    squares = ((counts - n_draws * chance) ** 2).sum() / (n_draws * chance)
    statistic = squares / (1 - chance) * (n_frames - 1) / n_frames
    low, high = stats.chi2.ppf([0.0005, 0.9995], n_frames - 1)
    assert low < statistic < high
    # Not only each frame alone: how many of the last 26 are kept is hypergeometric.
    late = (draws >= 34).sum(axis=1)
    wanted = stats.hypergeom(n_frames, 26, capacity)
    assert late.mean() == pytest.approx(wanted.mean(), abs=4 * wanted.std() / np.sqrt(n_draws))
    assert late.var() == pytest.approx(wanted.var(), rel=0.15)


def test_the_first_frame_beyond_the_capacity_has_no_advantage() -> None:
    rng = np.random.default_rng(9)
    draws = np.array([kept_after((2, 1), 2, rng) for _ in range(2000)])
    # Each of three frames is kept twice in three draws, with a standard error of 0.0105.
    assert np.bincount(draws.ravel()) / 2000 == pytest.approx(2 / 3, abs=0.04)
