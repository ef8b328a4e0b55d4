import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.messages import Novelty
from tasks.novelty import novelty as novelty_of

MEASURES = ["sparsity", "lof", "least-counts"]


def novelty(latent: np.ndarray, k: int, measure: Novelty, seed: int = 1) -> np.ndarray:
    return novelty_of(latent, k, measure, np.random.default_rng(seed))


@pytest.fixture
def latent() -> np.ndarray:
    """A dense cloud, a sparse one, and one point far from both."""
    rng = np.random.default_rng(0)
    dense, sparse = rng.normal(0, 0.1, (60, 3)), rng.normal(4, 1.0, (30, 3))
    return np.concatenate([dense, sparse, [[20.0, -20.0, 20.0]]]).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_sparsity_is_the_distance_to_the_kth_neighbour(latent: np.ndarray, k: int) -> None:
    wide = latent.astype(float)
    distances = np.sort(np.linalg.norm(wide[:, None] - wide[None], axis=-1), axis=1)
    # Column 0 is the frame itself.
    np.testing.assert_allclose(novelty(latent, k, "sparsity"), distances[:, k], rtol=1e-5)


@pytest.mark.parametrize("k", [3, 10])
def test_lof_is_that_of_its_paper(latent: np.ndarray, k: int) -> None:
    """Breunig et al. 2000, definitions 3 to 7, written out."""
    wide = latent.astype(float)
    distances = np.linalg.norm(wide[:, None] - wide[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :k]
    k_distance = np.take_along_axis(distances, nearest, axis=1)[:, -1]
    reach = np.maximum(k_distance[nearest], np.take_along_axis(distances, nearest, axis=1))
    density = 1 / reach.mean(axis=1)
    wanted = density[nearest].mean(axis=1) / density
    np.testing.assert_allclose(novelty(latent, k, "lof"), wanted, rtol=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_lone_frame_is_newest(latent: np.ndarray, measure: str) -> None:
    scores = novelty(latent, 5, measure)
    assert scores.shape == (91,)
    assert scores.dtype == np.float64
    assert np.argmax(scores) == 90


def test_only_sparsity_tells_clouds_of_unequal_density_apart(latent: np.ndarray) -> None:
    sparsity, lof = (novelty(latent, 5, measure) for measure in ("sparsity", "lof"))
    assert np.median(sparsity[60:90]) > 5 * np.median(sparsity[:60])
    assert np.median(lof[60:90]) == pytest.approx(np.median(lof[:60]), rel=0.1)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("n_frames", [2, 3, 5])
def test_fewer_frames_than_neighbours_use_all_the_others(latent: np.ndarray, measure: str, n_frames: int) -> None:
    few = latent[:n_frames]
    np.testing.assert_array_equal(novelty(few, 50, measure), novelty(few, n_frames - 1, measure))
    assert np.isfinite(novelty(few, 50, measure)).all()


@pytest.mark.parametrize("measure", MEASURES)
def test_a_lone_frame_has_nothing_to_be_new_against(latent: np.ndarray, measure: str) -> None:
    np.testing.assert_array_equal(novelty(latent[:1], 5, measure), [0.0])
    assert len(novelty(latent[:0], 5, measure)) == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_frames_have_finite_scores(measure: str) -> None:
    latent = np.zeros((30, 3), np.float32)
    latent[-1] = 1.0
    scores = novelty(latent, 5, measure)
    assert np.isfinite(scores).all()
    assert np.argmax(scores) == 29


@given(sizes=st.permutations([3, 20, 40, 60]), seed=st.integers(0, 2**32))
def test_least_counts_prefers_the_emptiest_cluster(sizes: list[int], seed: int) -> None:
    """Clouds far apart: clusters may split one, and never join two."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(4), sizes))
    latent = (100.0 * owner[:, None] + rng.normal(0, 1, (len(owner), 3))).astype(np.float32)
    scores = novelty(latent, 2, "least-counts", seed)
    # Each score is minus a count, and a fraction above it.
    counts = np.ceil(-scores)
    assert (counts >= 1).all()
    assert (counts <= np.array(sizes)[owner]).all()
    assert counts[np.argmax(scores)] == counts.min()
    np.testing.assert_array_equal(scores, novelty(latent, 2, "least-counts", seed))


def test_least_counts_prefers_the_sparser_of_a_cluster() -> None:
    latent = np.array([[0.0], [0.1], [0.2], [0.5], [90.0], [90.1], [90.2], [90.3]], np.float32)
    scores = novelty(latent, 1, "least-counts")
    assert np.floor(scores).tolist() == [-4.0] * 8
    assert np.argmax(scores) == 3
